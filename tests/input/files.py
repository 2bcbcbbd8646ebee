"""What a stranger may hand in where a good file or document is expected; several test files share it."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashar_cli.errors import FlasharError

DEEP = 100_000
HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, -(10**9), 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "nan", "inf", "-1", "1e999", "9" * 5000, "٣", "x" * 100_000),
    *(
        "../x",
        "/etc/passwd",
        ".",
        "..",
        "a/b",
        "a\\b",
        "nul\0",
        "\ud800",
        "line\nbreak",
        "\x1b[31m",
        "name.safetensors",
    ),
    *([], {}, [[]], [None], {"": None}, [[[[[[]]]]]], ["a", 1, None], {"a": {"b": {"c": []}}}, [1] * 1000),
)

_UNCHECKED: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fails what hangs. In the main thread alone."""

    def ring(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"still running after {seconds} s")  # which no `except Exception` takes for a damaged file

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def accepted(read: Callable[[], object], limit_s: float = 20.0) -> bool:
    """Whether ``read`` takes its input; False where it refuses with a line. Anything else fails the test."""
    with time_limit(limit_s):
        try:
            read()
        except FlasharError as error:
            assert str(error).strip()
            return False
    return True


def quick(strategy: st.SearchStrategy[Any], count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of some values, the same every time; the test calls its argument ``drawn``."""
    chosen = settings(max_examples=count, derandomize=True, database=None, **_UNCHECKED)
    return lambda test: chosen(given(drawn=strategy)(test))


def thorough(strategy: st.SearchStrategy[Any], count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same test of many values, others every time."""
    chosen = settings(max_examples=count, **_UNCHECKED)
    return lambda test: pytest.mark.slow(chosen(given(drawn=strategy)(test)))


def special_files() -> dict[str, Callable[[Path], object]]:
    """Ways to put something at a path that is no good file of any kind."""
    kinds: dict[str, Callable[[Path], object]] = {
        "FIFO": os.mkfifo,
        "socket": _socket,
        "directory": lambda path: path.mkdir(),
        "device": lambda path: path.symlink_to("/dev/zero"),
        "link to nothing": lambda path: path.symlink_to("nothing-here"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
        "empty": lambda path: path.write_bytes(b""),
        "huge": lambda path: _sparse(path, 2**40),
        "zeros": lambda path: path.write_bytes(bytes(5000)),
        "noise": lambda path: path.write_bytes(bytes(range(256)) * 20),
        "UTF-16": lambda path: path.write_text('{"a": 1}\n', encoding="utf-16"),
        "BOM": lambda path: path.write_text('{"a": 1}\n', encoding="utf-8-sig"),
        "nested": lambda path: path.write_text('{"a": ' + "[" * DEEP + "]" * DEEP + "}\n"),
        "nested TOML": lambda path: path.write_text("a = " + "[" * DEEP + "]" * DEEP + "\n"),
        "dotted TOML": lambda path: path.write_text(".".join("a" * DEEP) + " = 1\n"),
        "duplicate keys": lambda path: path.write_text('{"a": 1, "a": 2}\n'),
        "infinite": lambda path: path.write_text('{"a": 1e999, "b": NaN}\n'),
        "long number": lambda path: path.write_text('{"a": ' + "9" * 5000 + "}\n"),
        "surrogate": lambda path: path.write_text('{"a": "\\ud800"}\n'),
        "list": lambda path: path.write_text("[1, 2]\n"),
        "null": lambda path: path.write_text("null\n"),
    }
    return kinds


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one to three places replaced, removed, added, doubled or swapped."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        parents = [place for place in _containers(changed) if place]
        if not parents:
            return changed
        parent = draw(st.sampled_from(parents))
        key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else list(range(len(parent)))))
        action = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "double", "swap")))
        value = draw(st.one_of(st.sampled_from(HOSTILE_VALUES), st.integers(-3, 40), st.floats(), st.text(max_size=5)))
        if action == "replace":
            parent[key] = copy.deepcopy(value)
        elif action == "remove":
            del parent[key]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = copy.deepcopy(value)
        elif action == "add":
            parent.insert(key, copy.deepcopy(value))
        elif action == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(_containers(changed))))
    return changed


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them changed, cut out, doubled, or the end lost."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        action = draw(st.sampled_from(("byte", "byte", "bytes", "cut", "double", "end")))
        if action == "byte" and found:
            found[at] = draw(st.integers(0, 255))
        elif action == "bytes":
            new = draw(
                st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((b"\xff" * 8, b"\0" * 8, b"\x7f" * 4)))
            )
            found[at : at + len(new)] = new
        elif action == "cut":
            del found[at : at + draw(st.integers(1, 64))]
        elif action == "double":
            found[at:at] = found[at : at + draw(st.integers(1, 600))]
        else:
            del found[at:]
    return bytes(found)


def as_json(document: Any) -> str:
    """As an editor might leave it: also what is no JSON by the letter."""
    return json.dumps(document, allow_nan=True)


def _containers(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    below = [found for item in inner for found in _containers(item)]
    return [value, *below] if isinstance(value, dict | list) else below


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
