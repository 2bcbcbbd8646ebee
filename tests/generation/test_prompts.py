"""Files of prompts, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.generation import prompts
from flashar_cli.generation.prompts import read_prompt_objects, read_prompts, repeated


def test_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes('a red star\r\n\n  {"prompt": "as it is"}  \n\t\nüber\u2028uns'.encode())
    assert read_prompts(tmp_path / "p.txt") == ["a red star", '{"prompt": "as it is"}', "über\u2028uns"]


def test_objects_with_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"tag": "two", "prompt": "a star\\nand a ring"}\n\n  {"prompt": ""}\n')
    assert read_prompts(path) == ["a star\nand a ring", ""]
    lines = [line for line, _ in read_prompt_objects(path, "x")]
    assert lines == ['{"tag": "two", "prompt": "a star\\nand a ring"}', '{"prompt": ""}']


@pytest.mark.parametrize(
    ("name", "content", "words"),
    (
        ("p.txt", b"", r"--prompts-file .*p\.txt has no prompts"),
        ("p.txt", b" \n\t\n", "has no prompts"),
        ("p.txt", b"a\nb\xff\n", r"line 2 of --prompts-file .* is not UTF-8"),
        ("p.txt", "a\n".encode("utf-16"), "byte order mark"),
        ("p.txt", b"a" * (2**20 + 1), "line 1 of .* is longer than 1 MiB"),
        ("p.jsonl", b'{"prompt": "a"}\na red star\n', r"line 2 of .*p\.jsonl is not valid JSON"),
        ("p.jsonl", b'\n{"text": "a"}\n', "line 2 of .* has no prompt"),
        ("p.jsonl", b'["prompt"]\n', "line 1 of .* has no prompt"),
        ("p.jsonl", b'{"prompt": 3}\n', "has no prompt"),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', "no Unicode"),
        ("p.jsonl", b"\n", "has no prompts"),
    ),
)
def test_other_files_are_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FlasharError, match=words) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


def test_each_prompt_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated(["a", "b"], 3) == ["a", "a", "a", "b", "b", "b"]
    with pytest.raises(FlasharError, match="1048576 images of 2 prompts are more than 1048576"):
        repeated(["a", "b"], 2**20)
    monkeypatch.setattr(prompts, "MOST_PROMPTS", 3)
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    assert len(read_prompts(tmp_path / "p.txt")) == 3
    (tmp_path / "p.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(FlasharError, match="more than 3 prompts"):
        read_prompts(tmp_path / "p.txt")
