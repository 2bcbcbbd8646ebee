"""Text to ids by the file that a checkpoint carries, against the library that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.text import open_text_tokenizer

tokenizers = pytest.importorskip("tokenizers")


def write_tokenizer(path: Path) -> Path:
    """Words, two of them special, and a rule that would put one before every text."""
    words = {"<pad>": 0, "<s>": 1, "a": 2, "red": 3, "star": 4, "<unk>": 5, "<begin>": 6}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.add_special_tokens(["<begin>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(path))
    return path


def test_ids_are_the_librarys_without_what_it_would_put_before_them(tmp_path: Path) -> None:
    tokenizer = open_text_tokenizer([write_tokenizer(tmp_path / "tokenizer.json")], 7)
    assert tokenizer.encode("a red star") == [2, 3, 4]
    assert tokenizer.encode("a blue star<begin>") == [2, 5, 4, 6]
    assert tokenizer.encode("") == []
    assert tokenizer.copies == {"text_tokenizer.json": tmp_path / "tokenizer.json"}
    with pytest.raises(FlasharError, match=r"has ids up to 6; this model's text tokens are 0\.\.5"):
        open_text_tokenizer(tokenizer.files, 6)


@pytest.mark.parametrize("content", (b"", b"{}", b'{"model": 3}', b"\xff\xfe"))
def test_other_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text_tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(FlasharError, match="is not a tokenizer.json") as caught:
        open_text_tokenizer([path], 7)
    assert "\n" not in str(caught.value)
