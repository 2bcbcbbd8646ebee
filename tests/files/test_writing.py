"""Files and folders are whole or not there, and what killed runs leave is found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import NPY, FolderKind, begins_with
from flashar_cli.files.writing import atomic_directory, atomic_file, atomic_files, lock, remove_folder, remove_stale

ROOT = Path(__file__).parents[2]
TEXT = begins_with("a text", b"text")
TEXTS = FolderKind("texts", {r"\w+\.txt": TEXT, r"deep/": TEXT, r"deep/\w+\.txt": TEXT})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Killed(BaseException):
    """Stands for Ctrl-C or SIGTERM at any moment."""


@pytest.mark.parametrize("error", (OSError(28, "No space left on device"), FlasharError("bad"), Killed()))
def test_a_failure_leaves_what_was_there(tmp_path, error):
    old, folder = tmp_path / "old.txt", tmp_path / "folder"
    old.write_text("text: old")
    folder.mkdir()
    (folder / "old.txt").write_text("text: old")
    before = names(tmp_path)
    with pytest.raises(FlasharError if isinstance(error, OSError) else type(error)), atomic_file(old) as file:
        file.write(b"text: half")
        raise error
    with (
        pytest.raises(FlasharError if isinstance(error, OSError) else type(error)),
        atomic_files(old, tmp_path / "a" / "b" / "new.txt") as files,
    ):
        files[0].write(b"text: whole")
        raise error
    for place in (folder, tmp_path / "c" / "d" / "new"):
        with (
            pytest.raises(FlasharError if isinstance(error, OSError) else type(error)),
            atomic_directory(place, TEXTS, overwrite=True) as temporary,
        ):
            (temporary / "new.txt").write_text("text: half")
            raise error
    assert names(tmp_path) == before and old.read_text() == (folder / "old.txt").read_text() == "text: old"


def test_whole_ones_take_their_place(tmp_path):
    with atomic_files(tmp_path / "a" / "one.txt", tmp_path / "two.txt") as (one, two):
        one.write(b"text 1")
        two.write(b"text 2")
        assert not (tmp_path / "two.txt").exists()
    for content in ("text 1", "text 2"):
        with atomic_directory(tmp_path / "folder", TEXTS, overwrite=True) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / f"{content[-1]}.txt").write_text(content)
    assert names(tmp_path) == ["a", "a/one.txt", "folder", "folder/deep", "folder/deep/2.txt", "two.txt"]
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_what_comes_into_a_folder_during_the_work_is_kept(tmp_path):
    folder = tmp_path / "folder"
    for overwrite in (False, True):
        with (
            pytest.raises(FlasharError, match=r"thesis in it is no part of texts"),
            atomic_directory(folder, TEXTS, overwrite) as temporary,
        ):
            (temporary / "new.txt").write_text("text")
            folder.mkdir(exist_ok=True)
            (folder / "thesis").write_text("years of work")
        assert names(tmp_path) == ["folder", "folder/thesis"]
    remove_folder(folder, TEXTS)
    assert (folder / "thesis").exists()


@pytest.mark.parametrize("content", ("other", "text"))
@pytest.mark.parametrize("name", ("a.txt", "deep/a.txt", "deep/deeper/a.txt", "a.md", ".hidden.txt", "more/a.txt"))
def test_a_kind_is_told_by_names_and_content(tmp_path, name, content):
    (tmp_path / "x" / name).parent.mkdir(parents=True)
    (tmp_path / "x" / name).write_text(content)
    is_one = name in ("a.txt", "deep/a.txt") and content == "text"
    assert (TEXTS.foreign(tmp_path / "x") is None) == is_one


def test_links_and_pipes_are_of_no_kind(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    folder = tmp_path / "folder"
    for make in (lambda path: path.symlink_to(tmp_path / "a.txt"), os.mkfifo, Path.mkdir):
        folder.mkdir()
        make(folder / "b.txt")
        assert TEXTS.foreign(folder) in ("b.txt", "b.txt/")
        (folder / "b.txt").rmdir() if (folder / "b.txt").is_dir() else (folder / "b.txt").unlink()
        folder.rmdir()
    assert not NPY.recognises(tmp_path / "a.txt") and not NPY.recognises(tmp_path / "none")


HANG = """
import sys, time
from pathlib import Path
from flashar_cli.files.writing import atomic_directory, atomic_file
from flashar_cli.files.kinds import FolderKind
place = Path(sys.argv[1])
with atomic_file(place / "a.txt") as file, atomic_directory(place / "folder", FolderKind("", {})) as folder:
    file.write(b"half")
    (folder / "half").write_text("half")
    print("here", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_leaves_goes_with_the_next(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HANG, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    left = names(tmp_path)
    assert len(left) == 3 and all(name.startswith(".") for name in left)
    (tmp_path / ".a.txt.mine").write_text("mine")
    for name in ("a.txt", "folder"):  # not while it lives
        remove_stale(tmp_path / name)
    assert names(tmp_path) == sorted([*left, ".a.txt.mine"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    with atomic_file(tmp_path / "a.txt") as file:
        file.write(b"text")
    with atomic_directory(tmp_path / "folder", TEXTS) as folder:
        (folder / "a.txt").write_text("text")
    assert names(tmp_path) == [".a.txt.mine", "a.txt", "folder", "folder/a.txt"]


def test_a_folder_that_was_set_aside_comes_back(tmp_path, monkeypatch):
    """Killed between the two renames, the old folder has no name; the next look at the place gives it back."""
    folder = tmp_path / "folder"
    with atomic_directory(folder, TEXTS) as temporary:
        (temporary / "old.txt").write_text("text: old")
    (folder).rename(tmp_path / ".folder.0123abcd.flashar-old")
    remove_stale(folder)
    assert names(tmp_path) == ["folder", "folder/old.txt"]
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".flashar-tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(FlasharError, match="could not be written: Input/output error"),
        atomic_directory(folder, TEXTS, True) as t,
    ):
        (t / "new.txt").write_text("text")
    assert names(tmp_path) == ["folder", "folder/old.txt"]


def test_long_names(tmp_path):
    for name in ("n" * 251 + ".txt", "\u00e4" * 123 + ".txt"):
        with atomic_file(tmp_path / name) as file:
            file.write(b"text")
    assert len(names(tmp_path)) == 2


def test_a_lock_is_one_process_alone(tmp_path):
    descriptor = lock(tmp_path)
    assert descriptor is not None and lock(tmp_path) is None
    os.close(descriptor)
    again = lock(tmp_path)
    assert again is not None
    os.close(again)
