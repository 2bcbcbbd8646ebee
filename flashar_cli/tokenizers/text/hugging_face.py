"""Vocabularies of Hugging Face's tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import read_bytes
from flashar_cli.tokenizers.text.base import TextTokenizer


class HuggingFaceTokenizer(TextTokenizer):
    """A ``tokenizer.json``."""

    names = ("text_tokenizer.json",)

    def __init__(self, files: Sequence[Path], size: int) -> None:
        from tokenizers import Tokenizer

        super().__init__(files, size)
        (path,) = files
        content = read_bytes(path)
        try:
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises bare exceptions, with the reason in the first line
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise FlasharError(
                f"{path} is not a tokenizer.json ({reason}); expected a file of Hugging Face's tokenizers library"
            ) from None
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if highest >= size:
            raise FlasharError(
                f"{path} has ids up to {highest}; this model's text tokens are 0..{size - 1}; "
                "use the vocabulary that it was trained with"
            )

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
