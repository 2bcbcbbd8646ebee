"""A small text vocabulary for prompts about the drawn shapes, in the two files of Emu3.5's: ranks and special tokens.

The ranks are a byte-pair encoding: 256 bytes, then for every known word the merges that make one token of it, letter
by letter. Words have the space before them, as prompts stand inside a template.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from flashar_cli.data.captioned_shapes import COLOURS, PHRASES, Scene
from flashar_cli.data.shapes import CLASS_NAMES
from flashar_cli.tokenizers.text.tiktoken_bpe import SPECIAL

RANKS_FILE, SPECIAL_FILE = "text.tiktoken", "special.txt"
# The special tokens of the second file, here without the visual ones.
SPECIAL_TOKENS = ("<|image token|>", "<|image start|>", "<|image end|>")
# As Emu3.5's, shorter.
TEMPLATE_WORDS = ("USER", " ASSISTANT")
IMAGE_PREFIX = "<|extra_100|><|image start|>{height}*{width}<|image token|>"
TEMPLATE = "<|extra_203|>USER: {prompt} ASSISTANT: " + IMAGE_PREFIX
UNCONDITIONAL = "<|extra_203|>USER:  ASSISTANT: " + IMAGE_PREFIX


def words() -> list[str]:
    """The words of all captions and of the template, each once."""
    captions = [Scene(CLASS_NAMES[0], ink, ink).caption(phrase) for phrase in PHRASES for ink in COLOURS]
    found = [*CLASS_NAMES, *(word for caption in captions for word in caption.split())]
    return [*TEMPLATE_WORDS, *(f" {word}" for word in dict.fromkeys(found))]


def ranks(known: Iterable[str]) -> dict[bytes, int]:
    """Tokens by rank: all bytes, then every beginning of every word, shorter ones of a word before longer ones."""
    found = {bytes([value]): value for value in range(256)}
    for word in known:
        content = word.encode()
        for end in range(2, len(content) + 1):
            found.setdefault(content[:end], len(found))
    return found


def special_ids() -> dict[str, int]:
    """The ids of all special tokens."""
    return {token: place for place, token in enumerate((*SPECIAL, *SPECIAL_TOKENS), start=len(ranks(words())))}


def write_vocabulary(folder: Path) -> None:
    """Writes ``text.tiktoken``, a token in base64 and its rank a line, and ``special.txt``, a token a line."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks(words()).items())
    (folder / RANKS_FILE).write_text("".join(lines), encoding="ascii")
    (folder / SPECIAL_FILE).write_text("".join(f"{token}\n" for token in SPECIAL_TOKENS), encoding="ascii")
