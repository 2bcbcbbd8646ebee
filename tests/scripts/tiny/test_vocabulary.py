"""The small vocabulary is a whole byte-pair encoding in which every word of a caption is one token."""

from __future__ import annotations

import base64

import pytest

from flashar_cli.data.captioned_shapes import describe
from scripts.tiny.vocabulary import (
    RANKS_FILE,
    SPECIAL_FILE,
    SPECIAL_TOKENS,
    TEMPLATE,
    ranks,
    special_ids,
    words,
    write_vocabulary,
)


def by_pairs(found: dict[bytes, int], text: bytes) -> list[bytes]:
    """Byte-pair encoding by its definition: the adjacent pair of the lowest rank is merged until none is left."""
    parts = [text[k : k + 1] for k in range(len(text))]
    while True:
        pairs = {k: found[parts[k] + parts[k + 1]] for k in range(len(parts) - 1) if parts[k] + parts[k + 1] in found}
        if not pairs:
            return parts
        at = min(pairs, key=lambda k: (pairs[k], k))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_every_word_is_one_token():
    found = ranks(words())
    assert sorted(found.values()) == list(range(len(found))) and len(found) < 400
    assert all(bytes([value]) in found for value in range(256))
    for word in words():
        assert by_pairs(found, word.encode()) == [word.encode()]
    known = {word.strip() for word in words()}
    assert all(set(describe(0, index)[1].split()) <= known for index in range(1000))


def test_ids_of_special_tokens_and_of_a_prompt():
    """By tiktoken itself, with the table that special tokens follow the ranks in."""
    tiktoken = pytest.importorskip("tiktoken")
    found, special = ranks(words()), special_ids()
    assert special["<|endoftext|>"] == len(found) and special["<|image end|>"] == len(found) + 3 + 205 + 2
    assert special["<|extra_200|>"] == len(found) + 203 == special["<|image token|>"] - 5
    pieces = r"[^\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
    encoding = tiktoken.Encoding("small", pat_str=pieces, mergeable_ranks=found, special_tokens=special)
    text = TEMPLATE.format(prompt="a red star", height=16, width=16)
    shown = [encoding.decode([token]) for token in encoding.encode(text, allowed_special="all")]
    assert shown == [
        *("<|extra_203|>", "USER", ":", " a", " red", " star", " ASSISTANT", ":", " ", "<|extra_100|>"),
        *("<|image start|>", "1", "6", "*", "1", "6", "<|image token|>"),
    ]


def test_the_files_as_tiktoken_reads_them(tmp_path):
    tiktoken_load = pytest.importorskip("tiktoken.load")
    write_vocabulary(tmp_path)
    found = ranks(words())
    assert tiktoken_load.load_tiktoken_bpe(str(tmp_path / RANKS_FILE)) == found
    first = (tmp_path / RANKS_FILE).read_text().splitlines()[0].split()
    assert base64.b64decode(first[0]) == b"\0" and first[1] == "0"
    assert (tmp_path / SPECIAL_FILE).read_text().split("\n")[:-1] == list(SPECIAL_TOKENS)
