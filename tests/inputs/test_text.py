"""What is shown of text and values from outside."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from flashar_cli.inputs.text import MOST_CHARACTERS, MOST_SHOWN, one_line, plain, printable, shown
from tests.input.values import DOCUMENTS, TEXT


@given(TEXT)
def test_printable_text_moves_no_terminal(text: str) -> None:
    line = printable(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in line)
    line.encode("utf-8")
    assert "\u202e" not in line


def test_printable_text_stays_as_it_is() -> None:
    for text in ("plain", "é 好 \U0001f600", "two\nlines\tand a tab"):
        assert printable(text) == text
    assert printable("\x1b[31m\x07\ud800\u202e") == "\\x1b[31m\\x07\\ud800\\u202e"


@given(st.lists(TEXT, max_size=4).map("".join))
def test_a_line_is_one_and_short(text: str) -> None:
    line = one_line(text)
    assert len(line) <= MOST_CHARACTERS and len(line.splitlines()) <= 1 and printable(line) == line


def test_a_long_line_keeps_both_ends() -> None:
    line = one_line("error: --seed is " + "9" * 10**6 + "; expected less")
    assert line.startswith("error: --seed is 999") and line.endswith("999; expected less") and len(line) == 500
    assert one_line("x" * 500) == "x" * 500


@given(DOCUMENTS)
def test_any_value_is_shown(value: object) -> None:
    assert len(shown(value)) <= MOST_SHOWN


def test_values_that_python_would_not_write() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]" or len(shown(deep)) <= MOST_SHOWN
    assert shown(10**5000) == "a number of about 5001 digits"
    assert shown([-(10**5000)]) == "[a number of about 5001 digits]"
    assert plain(deep) and len(json.dumps(plain(deep))) < 1000
    while deep:  # taken apart by hand: freeing it in one go would recurse
        deep = deep[0]


@given(DOCUMENTS)
def test_any_document_becomes_valid_json_and_utf8(document: object) -> None:
    text = json.dumps(plain(document), ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    json.loads(text)


def test_plain_keeps_what_json_holds() -> None:
    document = {"a": [1, 2.5, True, None, "é"], "b": {"c": ()}}
    assert plain(document) == {"a": [1, 2.5, True, None, "é"], "b": {"c": []}}
    assert plain(float("nan")) is None and plain({"x": float("inf")}) == {"x": None}
    assert plain("caf\udce9") == "caf\\udce9"
