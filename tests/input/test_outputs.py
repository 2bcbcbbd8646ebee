"""Every command against places that it must not write to: exit code 2, one line, and every file as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDERS = {
    "dot": ".",
    "nothing": "",
    "parent": "..",
    "root": "/",
    "there and back": "x/..",
    "back from a folder": "../images/3/..",
    "missing and back": "missing/../out",
    "home": "../home",
    "above home": "..",
    "strange files": "../mine",
    "a checkpoint and more": "../mixed",
    "a strange config": "../foreign",
    "a link to a folder": "../link",
    "a link to nothing": "../dangling",
    "a file": "../mine/thesis.txt",
    "below a file": "../mine/thesis.txt/out",
    "a pipe": "../pipe",
    "NUL": "a\0b",
    "no text": "\ud800",
    "too long": "n" * 300,
    "too long a folder": "n" * 300 + "/out",
    "the model": "../models/tiny",
    "the model, by another way": "../work/../models/./tiny",
    "the model, through a link": "../other-way/tiny",
    "in the model": "../models/tiny/out",
    "above the model": "../models",
    "the images": "../images",
    "in the images": "../images/3/out",
}
FILES = {
    "weights": "../models/tiny/model.safetensors",
    "config": "../models/tiny/config.json",
    "a new file in the model": "../models/tiny/new.EXT",
    "weights of another model": "../mixed/model.safetensors",
    "its weights by a second name": "../weights.EXT",
    "text": "../mine/text.EXT",
    "a folder": "../mine",
    "a pipe": "../pipe",
    "a device": "/dev/null",
    "a link": "../linked.EXT",
    "below a file": "../mine/thesis.txt/out.EXT",
    "NUL": "a\0b.EXT",
    "too long": "n" * 300 + ".EXT",
    "dot": ".",
    "nothing": "",
    "parent": "..",
    "root": "/",
}


def tree(root: Path) -> dict[str, object]:
    """Every name below a folder and what it holds. Times do not count."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


@pytest.fixture
def place(tmp_path, write_tiny_checkpoint, monkeypatch) -> Path:
    """A working directory among things that are precious."""
    (tmp_path / "models").mkdir()
    write_tiny_checkpoint("models/tiny", branch=False)
    for name in ("work", "home/.config", "mine", "foreign", "images/3", "upstream"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / ".config" / "settings").write_text("mine")
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for ending in ("npy", "npz", "pt", "safetensors", "json", "md", "html", "png"):
        (tmp_path / "mine" / f"text.{ending}").write_text("years of work")
        os.link(tmp_path / "models" / "tiny" / "model.safetensors", tmp_path / f"weights.{ending}")
        (tmp_path / f"linked.{ending}").symlink_to(f"mine/new.{ending}")
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    shutil.copy(tmp_path / "models" / "tiny" / "model.safetensors", tmp_path / "foreign")
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("mixed")
    (tmp_path / "other-way").symlink_to("models")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for index in range(4):
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(tmp_path / "images" / "3" / f"{index}.png")
    torch.save({"model": {"layers.0.attention.wo.weight": torch.zeros(4, 4)}}, tmp_path / "upstream" / "model.pt")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home" / "cache"))
    return tmp_path


def assert_refused(run_cli, place: Path, arguments: tuple[object, ...], what: str) -> None:
    before = tree(place)
    result = run_cli(*arguments)
    assert result.code == 2, (what, result)
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, (what, result.err)
    assert "Traceback" not in result.err and not result.out
    assert tree(place) == before, (what, arguments)


MODEL = "../models/tiny"
DATA = ("--data", "../images")


@pytest.mark.parametrize(
    ("command", "not_inputs"),
    (
        (("generate", MODEL), {"the images", "in the images"}),
        (("encode", MODEL, *DATA), set()),
        (("adapt", MODEL, *DATA), set()),
        # A checkpoint beside the source file is new; SRC is a file.
        (("convert", "../upstream/model.pt"), {"in the model", "in the images"}),
    ),
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_folders_that_may_not_be_replaced(run_cli, place, command, not_inputs):
    if command[0] == "convert":
        assert_refused(run_cli, place, (*command, "--out", "../upstream", "--overwrite"), "the source's folder")
        assert_refused(run_cli, place, (*command, "--out", "../upstream/model.pt", "--overwrite"), "the source")
        not_inputs = not_inputs | {name for name in FOLDERS if name.startswith("the model")}
    for what, target in FOLDERS.items():
        if what not in not_inputs:
            assert_refused(run_cli, place, (*command, "--out", target, "--overwrite"), what)
            assert_refused(run_cli, place, (*command, "--out", target), what)


@pytest.mark.parametrize(
    ("command", "option", "ending"),
    (
        (("generate", MODEL), "--tokens-out", "npy"),
        (("generate", MODEL), "--npz", "npz"),
        (("convert", MODEL, "--to", "upstream"), "--out", "pt"),
        (("convert", MODEL, "--to", "upstream"), "--out", "safetensors"),
        (("bench", MODEL), "--out", "json"),
        (("bench", MODEL), "--report", "md"),
        (("bench", MODEL), "--report", "html"),
        (("bench", MODEL), "--plot", "png"),
    ),
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_files_that_may_not_be_replaced(run_cli, place, command, option, ending):
    for what, target in FILES.items():
        if command[0] == "convert" and "EXT" not in target:
            continue  # without the ending it names a folder for new files
        if what == "its weights by a second name" and ending == "safetensors":
            continue  # of the right kind; the first name keeps them
        assert_refused(run_cli, place, (*command, option, target.replace("EXT", ending), "--overwrite"), what)


def test_probe_replaces_only_its_own_files(run_cli, place):
    (place / "mine" / "probe.json").write_text('{"years": "of work"}')
    (place / "foreign" / "probe.png").write_text("mine")
    for target in ("../mine", "../foreign", "../mine/thesis.txt", "a\0b", "n" * 300, "../images/3", "../pipe"):
        assert_refused(run_cli, place, ("probe", MODEL, *DATA, "--out", target, "--overwrite"), target)


@pytest.mark.parametrize(
    "outputs",
    (
        ("--tokens-out", "same.npy", "--npz", "same.npy"),
        ("--tokens-out", "same.npy", "--npz", "../work/./same.npy"),
        ("--tokens-out", "same.npy", "--npz", "SAME.npy"),
        ("--tokens-out", "caf\u00e9.npy", "--npz", "cafe\u0301.npy"),
        ("--tokens-out", "../one/same.npy", "--npz", "../two/same.npy"),
        ("--tokens-out", "../first.npy", "--npz", "../second.npy"),
        ("--out", "out", "--tokens-out", "out/tokens.npy"),
        ("--out", "out", "--npz", "OUT/deep/samples.npz"),
        ("--out", "out/in", "--tokens-out", "out"),
        ("--out", "out", "--tokens-out", "out.part/tokens.npy"),
        ("--out", "out", "--npz", "out.part"),
    ),
)
def test_outputs_in_each_others_way(run_cli, place, outputs):
    (place / "one").mkdir()
    (place / "two").symlink_to("one")
    np.save(place / "first.npy", np.zeros(3))
    os.link(place / "first.npy", place / "second.npy")
    assert_refused(run_cli, place, ("generate", MODEL, *outputs, "--overwrite"), str(outputs))


@pytest.mark.parametrize(("command", "work"), (("generate", "out.part"), ("adapt", "out.run")))
def test_a_work_folder_that_is_someone_elses(run_cli, place, command, work):
    (place / "work" / work).mkdir()
    (place / "work" / work / "thesis.txt").write_text("years of work")
    data = DATA if command == "adapt" else ()
    for more in ((), ("--overwrite",)):
        assert_refused(run_cli, place, (command, MODEL, *data, "--out", "out", *more), work)


@pytest.mark.parametrize("happens", ("full disk", "Ctrl-C", "SIGTERM"))
def test_a_failure_while_writing_leaves_nothing(run_cli, place, monkeypatch, happens):
    """The first file that is to be made safe on the disk fails, in every command that writes whole files."""
    before, fsync = tree(place), os.fsync

    def failing(descriptor: int) -> None:
        if happens == "full disk":
            raise OSError(28, "No space left on device")
        if happens == "Ctrl-C":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)
        fsync(descriptor)

    for command, goes_on in (
        (("generate", MODEL, "--labels", "0", "--out", "deep/out"), True),
        (("generate", MODEL, "--labels", "0", "--npz", "deep/out.npz", "--tokens-out", "deep/out.npy"), True),
        (("encode", MODEL, *DATA, "--out", "deep/out"), True),
        (("convert", MODEL, "--to", "upstream", "--out", "deep/out"), False),
        (("probe", MODEL, *DATA, "--num-images", 4, "--num-validation", 1, "--out", "deep/out"), False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            result = run_cli(*command)
        code = {"full disk": 2, "Ctrl-C": 130, "SIGTERM": 0 if goes_on else 143}[happens]
        assert result.code == code and "Traceback" not in result.err, (command, result)
        assert ("resume with" in result.err) == (goes_on and happens != "full disk"), result
        if happens == "full disk":
            assert "No space left on device" in result.err.splitlines()[-1]
        assert tree(place) == before, command


def test_a_source_without_a_good_image_leaves_nothing(run_cli, place):
    for path in (place / "images" / "3").iterdir():
        path.write_bytes(b"no image")
    before = tree(place)
    for allowed in ("0", "3", "100%"):
        result = run_cli("encode", MODEL, *DATA, "--max-bad", allowed, "--shard-size", 2, "--out", "deep/out")
        assert result.code == 2 and result.err.splitlines()[-1].startswith("error: "), result
        assert tree(place) == before, allowed


def test_what_flashar_wrote_is_replaced(run_cli, place):
    """Twice the same command: refused without --overwrite, done with it, and never with a file of the user's in it."""
    for command, own in (
        (("generate", MODEL, "--labels", "0,1"), "out/contact-sheet.png"),
        (("generate", MODEL, "--labels", "0,1", "--no-images", "--tokens-out", "t.npy"), "t.npy"),
        (("encode", MODEL, *DATA, "--max-bad", "50%"), "out/codes-00000.parquet"),
        (("convert", MODEL, "--to", "upstream"), "out/model.pt"),
    ):
        out = ("--out", "out") if "--tokens-out" not in command else ()
        result = run_cli(*command, *out)
        assert result.code == 0, result
        seed = ("--seed", 5) if command[0] == "encode" else ()
        assert run_cli(*command, *out).code == (0 if command[0] == "encode" else 2)
        before = (place / "work" / own).stat().st_mtime_ns
        result = run_cli(*command, *out, *seed, "--subset", 3, "--overwrite") if seed else None
        result = result or run_cli(*command, *out, "--overwrite")
        assert result.code == 0 and (place / "work" / own).stat().st_mtime_ns != before, result
        if out and command[0] != "convert":
            (place / "work" / "out" / "mine.txt").write_text("mine")
            more = ("--subset", 2) if seed else ()
            assert_refused(run_cli, place, (*command, *out, *more, "--overwrite"), own)
        shutil.rmtree(place / "work")
        (place / "work").mkdir()
        os.chdir(place / "work")
