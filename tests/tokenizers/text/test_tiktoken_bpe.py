"""Byte-pair encoding against merging by brute force, and the published vocabulary against ids of its own code."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.text import TextTokenizer, find_text_tokenizer, open_text_tokenizer
from tests.tokenizers.text.vocabularies import MORE, NUM_RANKS, NUM_SPECIAL, SIZE, learned, ranks_text, write_vocabulary

PUBLISHED = os.environ.get("FLASHAR_EMU_VOCABULARY")
KNOWN_IDS = Path(__file__).parents[2] / "parity" / "data" / "emu35_tokenizer.json"
# Texts in the pieces that are merged apart, by Qwen's rules.
PIECES = (
    ("a red star", ["a", " red", " star"]),
    ("stars and assistants", ["stars", " and", " assistants"]),
    ("32*32", ["3", "2", "*", "3", "2"]),
    ("is 12 red", ["is", " ", "1", "2", " red"]),
    ("don't We'LL it's", ["don", "'t", " We", "'LL", " it", "'s"]),
    ("we'LLs", ["we", "'LL", "s"]),
    ("red!\nstar", ["red", "!\n", "star"]),
    ("red,  blue \n\n star", ["red", ",", " ", " blue", " \n\n", " star"]),
    ("heart!?\r\n(ring) ", ["heart", "!?\r\n", "(ring", ")", " "]),
    ("für 猫", ["für", " 猫"]),
    ("tab\tstar \t ", ["tab", "\tstar", " \t "]),
    ("", []),
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    return open_text_tokenizer(write_vocabulary(tmp_path), SIZE)


def brute_force(piece: str, tokens: list[bytes]) -> list[int]:
    """Joins the pair of lowest rank, the leftmost of equal ones, until no pair is a token."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    parts = [bytes([byte]) for byte in piece.encode()]
    while pairs := [(ranks[a + b], k) for k, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


def tempting_tokens() -> list[bytes]:
    """A vocabulary with the pairs of bytes where a piece ends, so that joined pieces are seen, and with other pairs."""
    ends = [a.encode()[-1:] + b.encode()[:1] for _, pieces in PIECES for a, b in pairwise(pieces)]
    others = [bytes(pair) for text, _ in PIECES for pair in pairwise(text.encode())]
    return learned(dict.fromkeys([*ends, *others]))


@pytest.mark.parametrize(("text", "pieces"), PIECES)
def test_ids_are_those_of_merging_by_brute_force(tmp_path: Path, text: str, pieces: list[str]) -> None:
    tokens, files = tempting_tokens(), write_vocabulary(tmp_path)
    files[0].write_bytes(ranks_text(tokens))
    tokenizer = open_text_tokenizer(files, len(tokens) + NUM_SPECIAL)
    assert "".join(pieces) == text
    for first, second in pairwise(pieces):
        assert brute_force(first + second, tokens) != brute_force(first, tokens) + brute_force(second, tokens)
    assert tokenizer.encode(text) == [each for piece in pieces for each in brute_force(piece, tokens)]


def test_words_are_merged(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a red star and a heart")
    assert ids == [
        each for word in ("a", " red", " star", " and", " a", " heart") for each in brute_force(word, learned())
    ]
    assert len(ids) < 12


def test_special_tokens_follow_the_ranks(tokenizer: TextTokenizer) -> None:
    assert SIZE == 507
    for place, text in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_1|>")):
        assert tokenizer.encode(text) == [NUM_RANKS + place]
    assert tokenizer.encode("<|extra_204|>") == [NUM_RANKS + NUM_SPECIAL - 1]
    start, number = NUM_RANKS + NUM_SPECIAL, brute_force("32", learned())
    assert tokenizer.encode("<|image start|>32<|image token|>") == [start + 1, *number, start]
    assert tokenizer.encode("<|image end|>") == [SIZE - 1]


def test_special_tokens_beyond_the_table_are_text(tmp_path: Path) -> None:
    files = write_vocabulary(tmp_path)
    assert max(open_text_tokenizer(files, SIZE).encode(MORE[3])) < NUM_RANKS
    whole = open_text_tokenizer(files, SIZE + 2)
    assert whole.encode(MORE[3] + MORE[4]) == [SIZE, SIZE + 1]


def test_accents_are_composed_first(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("fu\u0308r") == tokenizer.encode("f\u00fcr") != []


@pytest.mark.parametrize("text", ("x" * 2**16, " " * 2**16, "\n" * 2**16, "'" * 2**16, "  x" * 2**14, "猫" * 2**16))
def test_the_longest_prompts_are_read(tokenizer: TextTokenizer, text: str) -> None:
    assert 0 < len(tokenizer.encode(text)) <= len(text.encode())


def replaced(line: int, new: bytes) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        lines = content.splitlines()
        return b"\n".join([*lines[:line], new, *lines[line + 1 :]]) + b"\n"

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    (
        (lambda content: b"", "no token for byte 0 alone"),
        (lambda content: content[:-2], "line 296 of .* its rank 295"),
        (lambda content: ranks_text(learned()[1:]), f"no token for byte {learned()[0][0]} alone"),
        (lambda content: content + content.splitlines()[3], "line 297 of .*expected a new token"),
        (replaced(280, b"!!!! 280"), "line 281 of .* is '!!!! 280'; expected a new token in base64 and its rank 280"),
        (replaced(280, b"YQ= 280"), "line 281"),
        (replaced(280, base64.b64encode(b"zebra") + b" 279"), "its rank 280"),
        (replaced(280, base64.b64encode(b"zebra") + b" 281"), "its rank 280"),
        (replaced(280, base64.b64encode(b"zebra") + b" 0280"), "its rank 280"),
        (replaced(280, base64.b64encode(b"a") + b" 280"), "expected a new token"),
        (replaced(280, base64.b64encode(b"zebra")), "its rank 280"),
        (replaced(280, b" 280"), "its rank 280"),
        (replaced(280, b""), "line 281"),
        (replaced(280, b"\xff\xfe\x1b[31m 280"), "line 281"),
        (lambda content: content.replace(b" ", b"\t"), "line 1 of"),
    ),
)
def test_wrong_ranks_are_one_line(tmp_path: Path, edit: Callable[[bytes], bytes], words: str) -> None:
    files = write_vocabulary(tmp_path)
    files[0].write_bytes(edit(files[0].read_bytes()))
    with pytest.raises(FlasharError, match=words) as error:
        open_text_tokenizer(files, SIZE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "size", "words"),
    (
        ("\n".join(MORE[:2]), SIZE, "296 tokens, .*txt 2 more after the 208 .*; this model's table has 507 rows"),
        ("\n".join(MORE), NUM_RANKS + NUM_SPECIAL - 1, "this model's table has 503 rows"),
        ("\n".join(MORE), SIZE + 3, "this model's table has 510 rows"),
        ("\n".join([*MORE, MORE[0]]), SIZE, "'<|image token|>' twice"),
        ("<|extra_3|>\n" + "\n".join(MORE), SIZE, "'<|extra_3|>' twice, or one that is always there"),
    ),
)
def test_wrong_special_tokens_are_one_line(tmp_path: Path, more: str, size: int, words: str) -> None:
    files = write_vocabulary(tmp_path)
    files[1].write_text(more)
    with pytest.raises(FlasharError, match=words.replace("|", r"\|")):
        open_text_tokenizer(files, size)


def test_a_folder_has_all_files_or_none(tmp_path: Path) -> None:
    names = [path.name for path in write_vocabulary(tmp_path)]
    found = find_text_tokenizer(tmp_path, names, SIZE)
    assert found is not None and list(found.copies) == ["text_tokenizer.tiktoken", "text_tokenizer_special.txt"]
    assert list(found.copies.values()) == [tmp_path / name for name in names]
    (tmp_path / names[0]).unlink()
    with pytest.raises(FlasharError, match=r"has a part of a text tokenizer and lacks emu3\.tiktoken"):
        find_text_tokenizer(tmp_path, names, SIZE)
    (tmp_path / names[1]).unlink()
    assert find_text_tokenizer(tmp_path, names, SIZE) is None and find_text_tokenizer(tmp_path, (), SIZE) is None


@pytest.mark.skipif(PUBLISHED is None, reason="FLASHAR_EMU_VOCABULARY names no folder with Emu3.5's vocabulary")
def test_the_published_vocabulary() -> None:
    names = ("emu3.tiktoken", "emu3_vision_tokens.txt")
    cases = json.loads(KNOWN_IDS.read_text(encoding="utf-8"))
    for size in (151854, 151854 + 131072):
        tokenizer = find_text_tokenizer(Path(str(PUBLISHED)), names, size)
        assert tokenizer is not None
        known = [case for case in cases if max(case["ids"], default=0) < size]
        assert len(known) >= 8
        for case in known:
            assert tokenizer.encode(case["text"]) == case["ids"]
