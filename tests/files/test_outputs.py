"""Places that get into each other's way, however they are named."""

from __future__ import annotations

import os

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import begins_with
from flashar_cli.files.outputs import Output, check_outputs

TEXT = begins_with("a text", b"text")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("text")
    os.link("folder/a.txt", "hard.txt")
    (tmp_path / "way").symlink_to("folder")
    return tmp_path


@pytest.mark.parametrize(
    ("one", "other", "relation"),
    (
        ("folder/a.txt", "hard.txt", "is the same as"),  # replacing one of two names is known by the file alone
        ("folder/a.txt", "way/a.txt", "is the same as"),
        ("folder/a.txt", "way/../folder/./a.txt", "is the same as"),
        ("way", "folder/a.txt", "lies inside"),
        ("folder/a.txt", "way", "holds"),
        ("folder", "way/new/deep.txt", "lies inside"),
        ("new.txt", "hard.txt", None),
        ("folder.txt", "folder/new.txt", None),
        ("new.txt", "new.txt.bak", None),
    ),
)
def test_outputs_against_inputs_and_each_other(place, one, other, relation):
    outputs = [Output("--one", place / one, TEXT), Output("--other", place / other, TEXT)]
    if relation is None:
        check_outputs(outputs, {}, overwrite=True)
        check_outputs(outputs[1:], {"INPUT": place / one}, overwrite=True)
        return
    with pytest.raises(FlasharError, match=rf"--other .* {relation} --one; give each"):
        check_outputs(outputs, {}, overwrite=True)
    with pytest.raises(FlasharError, match=rf"--other .* {relation} INPUT, which is read"):
        check_outputs(outputs[1:], {"INPUT": place / one}, overwrite=True)


def test_only_the_first_process_looks(place, monkeypatch):
    """The others may come when it has begun to write."""
    outputs = [Output("--out", place / "hard.txt", TEXT)]
    with pytest.raises(FlasharError, match="pass --overwrite"):
        check_outputs(outputs, {}, overwrite=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_outputs(outputs, {}, overwrite=False)
