"""A small vocabulary in tiktoken's format, learned from a few words. Never imported by the package."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

TEXT = "a red star, a blue ring and a green heart for the helpful assistant; drawn stars are read and heard"
MORE = ("<|image token|>", "<|image start|>", "<|image end|>", "<|visual token 0|>", "<|visual token 1|>")
NUM_RANKS, NUM_SPECIAL = 256 + 40, 3 + 205
SIZE = NUM_RANKS + NUM_SPECIAL + 3  # up to the end of an image


def learned(pairs_before: Iterable[bytes] = ()) -> list[bytes]:
    """Tokens by rank: all bytes, in an order of their own, some pairs of them, then 40 that ``TEXT`` has most often."""
    tokens = [bytes([byte]) for byte in range(256)]
    random.Random(0).shuffle(tokens)
    words = [[bytes([byte]) for byte in f" {word}".encode()] for word in TEXT.split()]
    for pair in pairs_before:
        tokens.append(pair)
        words = [merged(word, pair[:1], pair[1:]) for word in words]
    for _ in range(NUM_RANKS - 256):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        tokens.append(first + second)
        words = [merged(word, first, second) for word in words]
    return tokens


def merged(word: list[bytes], first: bytes, second: bytes) -> list[bytes]:
    """A word with each such pair made one token, from the left."""
    found: list[bytes] = []
    for token in word:
        if found and (found[-1], token) == (first, second):
            found[-1] = first + second
        else:
            found.append(token)
    return found


def ranks_text(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def write_vocabulary(folder: Path) -> list[Path]:
    """Its two files."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks, more = folder / "emu3.tiktoken", folder / "emu3_vision_tokens.txt"
    ranks.write_bytes(ranks_text(learned()))
    more.write_text("\n".join(MORE) + "\n\n")
    return [ranks, more]
