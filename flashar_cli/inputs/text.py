"""Makes text from outside safe to show: short, on one line, and without what controls a terminal."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Mapping
from typing import Any

MOST_CHARACTERS = 500  # of an error line
MOST_DEPTH = 32  # of a document that is kept or printed
MOST_SHOWN = 80  # of one value inside it
_LONG = 10**MOST_SHOWN
# Characters that end a line, control a terminal or change the direction of text, and lone surrogates.
_UNFIT = frozenset(("Cc", "Cs", "Zl", "Zp"))
_TURNS_TEXT = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, keep: str = "\n\t") -> str:
    """The text with unfit characters as backslash escapes; those in ``keep`` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _unfit(c) else _escaped(c) for c in text)


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """Printable text on one line: white space is folded, and more than ``most`` characters are cut in the middle."""
    # A huge text is cut first, to what can be shown of it.
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]} ... {text[-2 * most :]}"
    line = printable(" ".join(text.split()), keep="")
    if len(line) <= most:
        return line
    mark = " ... "
    tail = (most - len(mark)) // 3
    return line[: most - len(mark) - tail] + mark + line[len(line) - tail :]


def without_controls(text: str) -> str:
    """The text itself. Raises ValueError where it has unfit characters, which no name has."""
    unfit = next((character for character in text if _unfit(character) and character not in "\n\t"), None)
    if unfit is not None:
        raise ValueError(f"holds the character {_escaped(unfit)}, which no name has")
    return text


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, as one of bytes that are not UTF-8 has."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: object) -> str:
    """A value as Python writes it, in at most ``MOST_SHOWN`` characters, however large or deep it is."""
    if isinstance(value, int) and abs(value) >= _LONG:  # Python refuses to write thousands of digits
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return one_line(_SHORT.repr(value), MOST_SHOWN)


def plain(document: Any, depth: int = MOST_DEPTH) -> Any:
    """A document that JSON and UTF-8 can hold: lone surrogates are escaped, numbers that are not finite become null;
    values that JSON has no form for, or that are nested deeper than ``depth``, become text.
    """
    if depth == 0:
        return shown(document)
    if isinstance(document, str):
        return document.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(document, float):
        return document if abs(document) < float("inf") else None  # NaN fails the comparison
    if isinstance(document, Mapping):
        return {plain(str(key)): plain(value, depth - 1) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [plain(value, depth - 1) for value in document]
    if document is None or (isinstance(document, int) and abs(document) < _LONG):
        return document
    return plain(shown(document) if isinstance(document, int) else str(document))


class _Short(reprlib.Repr):
    """``reprlib``, but it describes numbers that Python refuses to write."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, MOST_SHOWN, MOST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        return shown(x) if abs(x) >= _LONG else repr(x)


_SHORT = _Short()


def _unfit(character: str) -> bool:
    return unicodedata.category(character) in _UNFIT or character in _TURNS_TEXT


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
