"""Text to text tokens, by the vocabulary files in a checkpoint: one module for each kind of vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.text.base import TextTokenizer
from flashar_cli.tokenizers.text.hugging_face import HuggingFaceTokenizer
from flashar_cli.tokenizers.text.tiktoken_bpe import TiktokenTokenizer

__all__ = ["TextTokenizer", "find_text_tokenizer", "open_text_tokenizer"]

KINDS: tuple[type[TextTokenizer], ...] = (HuggingFaceTokenizer, TiktokenTokenizer)


def open_text_tokenizer(files: Sequence[Path], size: int) -> TextTokenizer:
    """The text tokenizer of these files, whose suffixes tell its kind, for a table of ``size`` text tokens. Raises
    FlasharError for wrong files.
    """
    suffixes = [path.suffix for path in files]
    kind = next(kind for kind in KINDS if [Path(name).suffix for name in kind.names] == suffixes)
    return kind(files, size)


def find_text_tokenizer(folder: Path, names: Sequence[str], size: int) -> TextTokenizer | None:
    """As ``open_text_tokenizer``, of the files with these names in a folder; None where it has none of them. Raises
    FlasharError where it has some.
    """
    files = [folder / name for name in names]
    missing = [path.name for path in files if not path.exists()]
    if len(missing) == len(files):
        return None
    if missing:
        raise FlasharError(f"{folder} has a part of a text tokenizer and lacks {', '.join(missing)}; copy all of it")
    return open_text_tokenizer(files, size)
