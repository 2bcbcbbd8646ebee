"""Text to text tokens, by the vocabulary file in a checkpoint."""

from __future__ import annotations

from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import read_bytes


class TextTokenizer:
    """A ``tokenizer.json`` of Hugging Face's tokenizers library; ``path`` is kept so that derived checkpoints can copy
    it. Raises FlasharError for any other file.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.path = path
        content = read_bytes(path)
        try:
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises bare exceptions, with the reason in the first line
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise FlasharError(
                f"{path} is not a tokenizer.json ({reason}); expected a file of Hugging Face's tokenizers library"
            ) from None

    @property
    def vocab_size(self) -> int:
        """The number of text tokens, with those added to the vocabulary."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without any special tokens around them."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
