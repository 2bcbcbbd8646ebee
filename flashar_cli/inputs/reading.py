"""The only way to read a file from outside. It must be a regular file, of limited size where it is kept in memory,
and text must be UTF-8. Documents (JSON, TOML) have limited depth, no key twice, and only finite numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flashar_cli.errors import FlasharError

MOST_DOCUMENT_BYTES = 64 * 2**20
MOST_LINE_BYTES = 2**20
MOST_NAME_BYTES = 255  # as file systems allow
MOST_DEPTH = 64  # lists and objects inside each other; ours have five
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: Path, where: str | None = None) -> int:
    """The size in bytes of a regular file, for libraries that open it themselves. Opens nothing, so a FIFO doesn't
    block. ``where`` is what messages call the file. Raises FlasharError unless there is a regular file.
    """
    where = where or str(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        what = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise FlasharError(f"{where} {what}; expected a file") from None
    except (OSError, ValueError) as error:
        raise _unreadable(where, error) from None
    _check_kind(found, where)
    return found.st_size


def open_file(path: Path, where: str | None = None) -> io.BufferedReader:
    """Opens a regular file. Raises FlasharError as ``check_file``, and where it may not be read."""
    where = where or str(path)
    check_file(path, where)  # first: opening a device may do something
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise _unreadable(where, error) from None
    try:
        _check_kind(os.fstat(handle), where)  # it may have been replaced in between
    except FlasharError:
        os.close(handle)
        raise
    return open(handle, "rb")


def read_bytes(path: Path, where: str | None = None, most: int = MOST_DOCUMENT_BYTES) -> bytes:
    """The content of a regular file of ``most`` bytes at most. Raises FlasharError for any other."""
    where = where or str(path)
    with open_file(path, where) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise _unreadable(where, error) from None
    if len(content) > most:
        raise FlasharError(f"{where} is larger than {most / 2**20:g} MiB; is it the right file?")
    return content


def read_text(path: Path, where: str | None = None, most: int = MOST_DOCUMENT_BYTES) -> str:
    """The text of a UTF-8 file. Raises FlasharError as ``read_bytes``, and for another encoding."""
    return decode_text(read_bytes(path, where, most), where or str(path))


def read_lines(path: Path, where: str | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file of any size, ends included, with their numbers from 1 on. Raises FlasharError for a line that
    is too long.
    """
    where = where or str(path)
    with open_file(path, where) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), b""), start=1):
            if len(line) > MOST_LINE_BYTES:
                raise FlasharError(f"line {number} of {where} is longer than {MOST_LINE_BYTES / 2**20:g} MiB")
            yield number, line


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256, hex, over regular files one after the other. Raises FlasharError as ``open_file``."""
    digest = hashlib.sha256()
    for path in paths:
        with open_file(path) as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def decode_text(content: bytes, where: str) -> str:
    """The text of UTF-8 bytes without a byte order mark. Raises FlasharError for others."""
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise FlasharError(f"{where} begins with a byte order mark; save it as UTF-8 without one")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FlasharError(f"{where} is not UTF-8 ({error.reason} at byte {error.start})") from None


def parse_json(text: str, where: str, allow_nan: bool = False) -> Any:
    """A JSON document. Raises FlasharError for what is no JSON, a key that is twice in one object, infinite numbers and
    NaN (unless ``allow_nan``), text that is no Unicode, and nesting beyond MOST_DEPTH.
    """
    numbers: dict[str, Any] = {} if allow_nan else {"parse_constant": _refuse_constant, "parse_float": _finite}
    try:
        document = json.loads(text, object_pairs_hook=_object, **numbers)
        _check_values(document)
    except RecursionError:
        raise FlasharError(f"{where} is nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:  # JSONDecodeError, and an integer of thousands of digits
        raise FlasharError(f"{where} is not valid JSON ({reason(error)})") from None
    return document


def read_json(path: Path, where: str | None = None) -> Any:
    """The JSON document in a file. Raises FlasharError as ``read_text`` and ``parse_json``."""
    where = where or str(path)
    return parse_json(read_text(path, where), where)


def read_toml(path: Path, where: str | None = None) -> dict[str, Any]:
    """The TOML document in a file. Raises FlasharError as ``read_json``."""
    where = where or str(path)
    text = read_text(path, where, MOST_LINE_BYTES)
    try:
        # The parser's time grows with the square of the number of parts of a dotted key.
        if any(line.count(".") > MOST_DEPTH for line in text.splitlines()):
            raise RecursionError
        document = tomllib.loads(text)
        _check_values(document)
    except RecursionError:
        raise FlasharError(f"{where} is nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise FlasharError(f"{where} is not valid TOML: {reason(error)}") from None
    return document


def plain_name(name: str) -> str:
    """The name itself, of a file in the same folder as the document that names it. Raises ValueError for a path that
    could lead out of that folder.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0") or len(name.encode()) > MOST_NAME_BYTES:
        raise ValueError("expected the name of a file in the same folder")
    return name


def _check_kind(found: os.stat_result, where: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no regular file")
        raise FlasharError(f"{where} is {kind}; expected a file")


def _unreadable(where: str, error: OSError | ValueError) -> FlasharError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FlasharError(f"{where} cannot be read ({why}); check the path and its permissions")


def reason(error: Exception) -> str:
    """What an error says, on one line; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is beyond floating-point numbers")
    return value


def _check_values(document: Any) -> None:
    """Raises RecursionError for nesting beyond MOST_DEPTH, ValueError for whole numbers that no tensor can hold and for
    text with half of a surrogate pair.
    """
    pending = [(document, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"it has text that is no Unicode: {error.reason}") from None
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("it has a whole number beyond 64 bits")
        elif isinstance(value, dict | list):
            if depth == MOST_DEPTH:
                raise RecursionError
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            pending += [(item, depth + 1) for item in inner]
