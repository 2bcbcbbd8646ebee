"""The gate: what it lets in, and what it says of the rest."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.inputs import reading
from tests.input.files import DEEP, special_files, time_limit


@pytest.mark.parametrize(
    ("kind", "words"),
    (
        ("FIFO", "is a FIFO; expected a file"),
        ("socket", "is a socket; expected a file"),
        ("directory", "is a directory; expected a file"),
        ("device", "is a device; expected a file"),
        ("link to nothing", "is a link to nothing; expected a file"),
        ("link to itself", "cannot be read"),
        ("unreadable", "cannot be read"),
        ("huge", "is larger than 64 MiB"),
        ("noise", "is not UTF-8"),
        ("UTF-16", "byte order mark"),
        ("BOM", "byte order mark"),
        ("nested", "is nested more than 64 deep"),
        ("duplicate keys", "the key 'a' stands twice"),
        ("infinite", "1e999 is beyond"),
        ("long number", "is not valid JSON"),
        ("surrogate", "surrogates"),
        ("empty", "is not valid JSON"),
    ),
)
def test_what_is_no_json_file(tmp_path: Path, kind: str, words: str) -> None:
    special_files()[kind](tmp_path / "file")
    with time_limit(10), pytest.raises(FlasharError, match=words) as raised:
        reading.read_json(tmp_path / "file", "the file")
    assert str(raised.value).startswith("the file ") and len(str(raised.value)) < 300


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "secret").chmod(0)
    if os.access(tmp_path / "secret", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(FlasharError, match="Permission denied"):
        reading.read_json(tmp_path / "secret")


def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(reading, "check_file", lambda path, where=None: 0)
    with time_limit(5), pytest.raises(FlasharError, match="is a FIFO"):
        reading.open_file(tmp_path / "pipe")


def test_good_files_of_every_way_to_name_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"ä": [1, 2.5, -3, "x", null, true]}', encoding="utf-8")
    (tmp_path / "link").symlink_to("a.json")
    (tmp_path / "folder").symlink_to(tmp_path)
    for path in (tmp_path / "a.json", tmp_path / "link", tmp_path / "folder" / "link"):
        assert reading.read_json(path) == {"ä": [1, 2.5, -3, "x", None, True]}


def test_bounds_are_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert len(reading.read_bytes(tmp_path / "a", most=100)) == 100
    with pytest.raises(FlasharError, match="larger than"):
        reading.read_bytes(tmp_path / "a", most=99)
    depth = reading.MOST_DEPTH
    assert reading.parse_json("[" * depth + "]" * depth, "it")
    for nested in (depth + 1, DEEP):
        with pytest.raises(FlasharError, match=f"nested more than {depth}"):
            reading.parse_json("[" * nested + "]" * nested, "it")
    assert reading.parse_json(f"[{2**63 - 1}, {-(2**63)}]", "it") == [2**63 - 1, -(2**63)]
    for number in (2**63, -(2**63) - 1):
        with pytest.raises(FlasharError, match="beyond 64 bits"):
            reading.parse_json(f"[{number}]", "it")


def test_lines_of_a_large_file(tmp_path: Path) -> None:
    lengths = [random.Random(0).randrange(50) for _ in range(1000)]
    (tmp_path / "a").write_bytes(b"".join(b"x" * length + b"\n" for length in lengths) + b"torn")
    found = list(reading.read_lines(tmp_path / "a"))
    assert [number for number, _ in found] == list(range(1, 1002))
    assert [len(line) for _, line in found] == [length + 1 for length in lengths] + [4]
    (tmp_path / "a").write_bytes(b"ok\n" + b"x" * (reading.MOST_LINE_BYTES + 1))
    with pytest.raises(FlasharError, match="line 2 of .* is longer than 1 MiB"):
        list(reading.read_lines(tmp_path / "a"))


@pytest.mark.parametrize("text", ("NaN", "[Infinity]", '{"a": -Infinity}'))
def test_numbers_that_are_none_are_let_in_where_they_are_measured(text: str) -> None:
    with pytest.raises(FlasharError, match="is no number"):
        reading.parse_json(text, "it")
    assert reading.parse_json(text, "it", allow_nan=True) is not None


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("a = 1\na = 2", "not valid TOML"),
        ("a = " + "[" * DEEP, "nested"),
        (".".join("a" * DEEP) + " = 1", "nested"),
        ("[" + ".".join("a" * 80) + "]", "nested"),
        ("a = 2026-13-45", "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
        (f"a = {2**63}", "beyond 64 bits"),
        ('a = "\\ud800"', "not valid TOML"),
        ("a = 1\0", "not valid TOML"),
        ("# " + "x" * 2**20, "larger than 1 MiB"),
    ),
)
def test_what_is_no_toml(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with time_limit(5), pytest.raises(FlasharError, match=words):
        reading.read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("name", ("", ".", "..", "../a", "/a", "a/b", "a\\b", "a\0", "x" * 256, "\ud800"))
def test_names_that_lead_out_of_a_folder(name: str) -> None:
    with pytest.raises(ValueError):
        reading.plain_name(name)


def test_names_of_files() -> None:
    for name in ("a", "model-00001-of-00002.safetensors", "..a", "a..b", "ä", "x" * 255):
        assert reading.plain_name(name) == name
