"""Every place where a command reads a file, and every kind of thing that may be there instead: one line, no hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.benchmarking.reports.made_up import report
from tests.input.files import special_files, time_limit
from tests.parity.upstream_files import upstream_state
from tests.tiny_models import CAPTION_PREFIX, PROMPT_PREFIX, build_model, random_config
from tests.tokenizers.text.vocabularies import write_vocabulary

Arguments = tuple[Any, ...]
KINDS = special_files()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A whole checkpoint, a base, one that reads captions, one that reads prompts, and an upstream file."""
    import torch

    from flashar_cli.checkpoints import checkpoint
    from flashar_cli.tokenizers.text.tiktoken_bpe import TiktokenTokenizer
    from flashar_cli.tokenizers.vq import VQTokenizer

    folder = tmp_path_factory.mktemp("models")
    captions, prompts = (
        random_config(branch=False).model_copy(update={"prefix": prefix}) for prefix in (CAPTION_PREFIX, PROMPT_PREFIX)
    )
    vocabulary = dict(zip(TiktokenTokenizer.names, write_vocabulary(folder / "vocabulary"), strict=True))
    for name, config in (
        ("whole", random_config()),
        ("base", random_config(branch=False)),
        ("t2i", captions),
        ("text", prompts),
    ):
        assert config.tokenizer is not None
        tokenizer, extras = VQTokenizer(config.tokenizer).state_dict(), vocabulary if name == "text" else None
        checkpoint.save(folder / name, config, build_model(config).state_dict(), tokenizer, extras=extras)
    torch.save(upstream_state(), folder / "upstream.pt")
    return {path.stem: path for path in folder.iterdir()}


def in_checkpoint(
    name: str, model: str = "whole", *shown: str
) -> Callable[[Path, dict[str, Path]], tuple[Path, Arguments]]:
    def place(folder: Path, models: dict[str, Path]) -> tuple[Path, Arguments]:
        shutil.copytree(models[model], folder / "model")
        (folder / "model" / name).unlink(missing_ok=True)
        return folder / "model" / name, ("generate", folder / "model", "--out", folder / "out", *shown)

    return place


def as_argument(name: str, *arguments: Any) -> Callable[[Path, dict[str, Path]], tuple[Path, Arguments]]:
    """``FILE`` among the arguments stands for the path, ``OUT`` for what must not appear, ``@name`` for a model."""

    def place(folder: Path, models: dict[str, Path]) -> tuple[Path, Arguments]:
        known = {"FILE": folder / name, "OUT": folder / "out", **{f"@{key}": path for key, path in models.items()}}
        (folder / "good.json").write_text(json.dumps(report()))
        return folder / name, tuple(known.get(argument, argument) for argument in arguments)

    return place


ENCODE = ("encode", "@base", "--data", "FILE", "--out", "OUT")
ADAPT = ("adapt", "@base", "--data", "shapes:20", "--out", "OUT")
PLACES = {
    "config": in_checkpoint("config.json"),
    "weights": in_checkpoint("model.safetensors"),
    "index": in_checkpoint("model.safetensors.index.json"),
    "tokenizer": in_checkpoint("tokenizer.safetensors"),
    "vocabulary": in_checkpoint("text_tokenizer.tiktoken", "text", "--prompt", "a star"),
    "special tokens": in_checkpoint("text_tokenizer_special.txt", "text", "--prompt", "a star"),
    "prompts": as_argument("p.jsonl", "generate", "@text", "--prompts-file", "FILE", "--out", "OUT"),
    "geneval": as_argument("m.jsonl", "generate", "@text", "--geneval", "FILE", "--out", "OUT"),
    "prompt tokens": as_argument("t.json", "generate", "@text", "--prompt-tokens", "FILE", "--out", "OUT"),
    "model": as_argument("model", "generate", "FILE", "--out", "OUT"),
    "caption features": as_argument("f.safetensors", "generate", "@t2i", "--caption-features", "FILE", "--out", "OUT"),
    "upstream pickle": as_argument("w.pt", "convert", "FILE", "--out", "OUT"),
    "upstream safetensors": as_argument("w.safetensors", "convert", "FILE", "--out", "OUT"),
    "upstream tokenizer": as_argument("vq.pt", "convert", "@upstream", "--tokenizer", "FILE", "--out", "OUT"),
    "parquet": as_argument("d.parquet", *ENCODE),
    "tar": as_argument("d.tar", *ENCODE),
    "jsonl": as_argument("d.jsonl", *ENCODE),
    "folder": as_argument("images", *ENCODE),
    "token shards": as_argument("codes/manifest.json", "adapt", "@base", "--data", "codes", "--out", "OUT"),
    "recipe": as_argument("recipe.toml", *ADAPT, "--recipe", "FILE", "--dry-run"),
    "probe": as_argument("probe.json", *ADAPT, "--probe", "FILE", "--dry-run"),
    "old report": as_argument("r.json", "compare", "FILE", "good.json"),
    "new report": as_argument("r.json", "compare", "good.json", "FILE"),
    "published sampler": as_argument(
        "clone/autoregressive/models/gpt.py", "bench", "@base", "--upstream", "clone", "--repeats", 1
    ),
}


# What hangs or is read without end, everywhere; every kind where a document is expected; the others now and then.
EVERYWHERE = ("FIFO", "device", "noise")
DOCUMENTS = ("config", "recipe")
CASES = [
    pytest.param(
        place, kind, marks=() if kind in EVERYWHERE or place in DOCUMENTS else pytest.mark.slow, id=f"{place}-{kind}"
    )
    for place in PLACES
    for kind in KINDS
    if (place, kind) != ("recipe", "empty")  # which is all defaults
]


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_one_line_and_nothing_is_left(run_cli, tmp_path, monkeypatch, models, place, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    path, arguments = PLACES[place](tmp_path, models)
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path)
    before = {entry for entry in tmp_path.rglob("*") if entry.name != "home"}
    with time_limit(30):
        result = run_cli(*arguments)
    lines = result.err.splitlines()
    assert result.code == 2 and lines[-1].startswith("error: "), (result.code, result.err[-2000:])
    assert result.err.count("error: ") == 1 and "Traceback" not in result.err
    assert {entry for entry in tmp_path.rglob("*") if entry.name != "home"} == before


def test_the_places_are_good_with_good_files(run_cli, tmp_path, monkeypatch, models):
    """Else the test above would pass for any reason."""
    monkeypatch.chdir(tmp_path)
    path, arguments = PLACES["config"](tmp_path, models)
    shutil.copyfile(models["whole"] / "config.json", path)
    assert run_cli(*arguments).code == 0
    shutil.rmtree(tmp_path / "out")
    path, arguments = PLACES["special tokens"](tmp_path / "prompts", models)
    shutil.copyfile(models["text"] / path.name, path)
    assert run_cli(*arguments).code == 0
    path, arguments = PLACES["geneval"](tmp_path, models)
    path.write_text('{"prompt": "a star"}\n')
    assert run_cli(*arguments).code == 0
    path, arguments = PLACES["old report"](tmp_path, models)
    path.write_text(json.dumps(report()))
    assert run_cli(*arguments).code == 0
    shutil.rmtree(tmp_path / "out")
    path, arguments = PLACES["upstream pickle"](tmp_path, models)
    shutil.copyfile(models["upstream"], path)
    assert run_cli(*arguments, "--num-heads", 4, "--grid", "3x5").code == 0
    assert load_file(tmp_path / "out" / "model.safetensors")
    (tmp_path / "recipe.toml").write_text("steps = 4\n")
    path, arguments = PLACES["recipe"](tmp_path, models)
    result = run_cli(*arguments, "--overwrite")
    assert result.code == 0, result.err
