"""Vocabularies in the format of the tiktoken library, with Qwen's way to split text and its special tokens.

Sources: QwenLM/Qwen tokenization_qwen.py, baaivision/Emu3.5 src/tokenizer_emu3_ibq/tokenization_emu3.py.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import read_bytes, read_text
from flashar_cli.inputs.text import shown
from flashar_cli.tokenizers.text.base import TextTokenizer

# Pieces that are never merged with each other: contractions, words with the character before them, single digits, signs
# with the space before them, line ends, other white space.
PIECES = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))


class TiktokenTokenizer(TextTokenizer):
    """Byte-pair encoding by a file of ranks, and special tokens after them: ``SPECIAL``, then the lines of the second
    file. Special tokens beyond the model's table, such as those for image tokens, are plain text here.
    """

    names = ("text_tokenizer.tiktoken", "text_tokenizer_special.txt")

    def __init__(self, files: Sequence[Path], size: int) -> None:
        from tiktoken import Encoding

        super().__init__(files, size)
        path, special_path = files
        ranks = read_ranks(path)
        special = (*SPECIAL, *read_special(special_path))
        if not len(ranks) + len(SPECIAL) <= size <= len(ranks) + len(special):
            raise FlasharError(
                f"{path} has {len(ranks)} tokens, {special_path.name} {len(special) - len(SPECIAL)} more after the "
                f"{len(SPECIAL)} that are always there; this model's table has {size} rows; use the files it came with"
            )
        self._encoding = Encoding(
            "flashar",
            pat_str=PIECES,
            mergeable_ranks=ranks,
            special_tokens={token: len(ranks) + place for place, token in enumerate(special[: size - len(ranks)])},
        )

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a ``.tiktoken`` file and their ranks 0, 1, 2 .. in this order: on each line base64 and a number.
    Raises FlasharError for other content, a token or a rank that is there twice, a gap, and a byte without a token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        word, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(word, validate=True)
        except binascii.Error:
            token = b""
        if not token or token in ranks or rank != b"%d" % len(ranks):
            raise FlasharError(
                f"line {number} of {path} is {shown(line.decode(errors='replace'))}; expected a new token in base64 "
                f"and its rank {len(ranks)}"
            )
        ranks[token] = len(ranks)
    if lost := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise FlasharError(f"{path} has no token for byte {lost[0]} alone; expected a whole tiktoken vocabulary")
    return ranks


def read_special(path: Path) -> list[str]:
    """The special tokens of a file, one a line; blank lines are skipped. Raises FlasharError for one that is there
    twice.
    """
    tokens = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    seen = set(SPECIAL)
    for token in tokens:
        if token in seen:
            raise FlasharError(f"{path} has the special token {shown(token)} twice, or one that is always there")
        seen.add(token)
    return tokens
