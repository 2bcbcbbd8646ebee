"""The folder that GenEval's evaluation reads, made of a model with text templates, and made again after a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flashar_cli.generation import run
from flashar_cli.generation.layout import GenEval, Layout

LINES = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a red bench"}',
    '{"prompt": "stars",  "tag": "cöunting"}',
    '{"prompt": "a blue ring and a very long row of green hearts", "tag": "x"}',
)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    (tmp_path / "metadata.jsonl").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return tmp_path / "metadata.jsonl"


def as_evaluated(folder: Path) -> dict[str, tuple[dict, list[Path]]]:
    """What the evaluation looks at: folders of digits, the one object in each, and the images of digits below it."""
    found = {}
    for place in folder.iterdir():
        if place.is_dir() and place.name.isdigit():
            with open(place / "metadata.jsonl", encoding="utf-8") as file:
                document = json.load(file)
            images = [path for path in (place / "samples").iterdir() if re.match(r"\d+\.png", path.name)]
            found[place.name] = document, sorted(images)
    return found


def test_folders_by_prompt(run_cli, prompt_checkpoint, tmp_path, metadata):
    result = run_cli("generate", prompt_checkpoint, "--geneval", metadata, "--out", tmp_path / "out", "--batch-size", 5)
    assert result.code == 0, result.err
    found, tokens = as_evaluated(tmp_path / "out"), np.load(tmp_path / "out" / "tokens.npy")
    assert sorted(found) == ["00000", "00001", "00002"] and tokens.shape == (12, 3, 5)
    assert len(np.unique(tokens.reshape(12, -1), axis=0)) == 12
    for row, line in enumerate(LINES):
        document, images = found[f"{row:05d}"]
        assert document == json.loads(line)
        assert [path.name for path in images] == ["0000.png", "0001.png", "0002.png", "0003.png"]
        for sample, path in enumerate(images):
            with Image.open(path) as image:
                settings = json.loads(image.text["flashar"])
            assert settings["shows"] == document["prompt"] and settings["image"] == 4 * row + sample
    # The same images as of the same list of prompts, in any batches.
    prompts = [part for line in LINES for _ in range(4) for part in ("--prompt", json.loads(line)["prompt"])]
    flat = run_cli("generate", prompt_checkpoint, *prompts, "--out", tmp_path / "flat", "--batch-size", 3)
    assert flat.code == 0, flat.err
    assert np.array_equal(np.load(tmp_path / "flat" / "tokens.npy"), tokens)
    for index in range(12):
        mine, theirs = (
            np.asarray(Image.open(tmp_path / name))
            for name in (f"out/{index // 4:05d}/samples/{index % 4:04d}.png", f"flat/{index:05d}.png")
        )
        assert np.array_equal(mine, theirs)
    # It knows the folder for its own, and nothing that somebody has added to it.
    again = ("generate", prompt_checkpoint, "--geneval", metadata, "--out", tmp_path / "out", "--overwrite")
    assert run_cli(*again, "--samples-per-prompt", 2).code == 0
    assert [len(images) for _, images in as_evaluated(tmp_path / "out").values()] == [2, 2, 2]
    (tmp_path / "out" / "00001" / "samples" / "mine.txt").write_text("kept")
    assert run_cli(*again).code == 2 and (tmp_path / "out" / "00001" / "samples" / "mine.txt").exists()


def test_it_goes_on_after_a_kill(run_cli, prompt_checkpoint, tmp_path, metadata, monkeypatch):
    command = (
        "generate",
        prompt_checkpoint,
        "--geneval",
        metadata,
        "--batch-size",
        2,
        "--samples-per-prompt",
        3,
        "--out",
    )
    assert run_cli(*command, tmp_path / "whole").code == 0
    draw, drawn = run.sample_batch, []

    def interrupted(*args):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(args[-1])
        return draw(*args)

    monkeypatch.setattr(run, "sample_batch", interrupted)
    assert run_cli(*command, tmp_path / "cut").code == 130 and not (tmp_path / "cut").exists()
    monkeypatch.setattr(run, "sample_batch", lambda *args: drawn.append(args[-1]) or draw(*args))
    metadata.write_text(metadata.read_text().replace("counting", "colors").replace("cöunting", "colors"))
    refused = run_cli(*command, tmp_path / "cut")
    assert refused.code == 2 and "(layout differ)" in refused.err, refused.err
    metadata.write_text("\n".join(LINES), encoding="utf-8")
    result = run_cli(*command, tmp_path / "cut")
    assert result.code == 0 and "4 of 9 images are made" in result.err and drawn == list(range(5)), result.err
    whole, cut = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("whole", "cut")
    )
    assert whole == cut and len(whole) == 9 + 3 + 2


@pytest.mark.parametrize(
    ("more", "words"),
    (
        (("--prompt", "a"), "--prompt and --geneval all say what images show"),
        (("--prompts-file", "p.txt"), "--prompts-file and --geneval all say"),
        (("--num-images", 3), "--num-images: --geneval makes images of all its prompts"),
        (("--no-images",), "--geneval holds images, but --no-images was passed"),
        (("--labels", 1), "not --labels"),
        (("--samples-per-prompt", 2**20), "1048576 images of 3 prompts are more than"),
        (("--samples-per-prompt", 0), "--samples-per-prompt is 0; expected"),
        (("--out", "metadata.jsonl"), "which is read"),
    ),
)
def test_what_contradicts_it_is_one_line(run_cli, prompt_checkpoint, tmp_path, metadata, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\n")
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("generate", prompt_checkpoint, "--geneval", metadata, *more)
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_out_a_folder_is_named_after_the_model(run_cli, prompt_checkpoint, tmp_path, metadata, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_cli("generate", prompt_checkpoint, "--geneval", metadata, "--tokens-out", "t.npy")
    assert result.code == 0, result.err
    assert len(as_evaluated(tmp_path / "prompted-samples")) == 3 and (tmp_path / "t.npy").exists()


def test_identities_tell_layouts_apart() -> None:
    layouts = (
        Layout(),
        GenEval(LINES, LINES, 4),
        GenEval(LINES, LINES, 3),
        GenEval(LINES, LINES, 1),
        GenEval(LINES[:2], LINES[:2], 4),
        GenEval(tuple(reversed(LINES)), LINES, 4),
    )
    assert len({layout.identity() for layout in layouts}) == len(layouts) and Layout().identity() == Layout().identity()
