"""How flashar recognises what it has written, so that ``--overwrite`` replaces nothing else.

There is no marker file. A marker would say that flashar made a folder, not that nobody has put anything into it since.
Instead every command names the kind of what it writes. What is there already is replaced only if all of it is of that
kind: each name is one that the command writes, and each file has the content of such a file. Copies pass as well.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class FileKind:
    """A kind of file. ``holds`` says whether a regular file that is not empty is of this kind; it may raise OSError or
    ValueError. ``may_link``: it may also be a link to one, or to nothing.
    """

    noun: str
    holds: Callable[[Path], bool]
    may_link: bool = False

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` is a regular file of this kind. An empty one passes, as it has nothing to lose."""
        try:
            if self.may_link and path.is_symlink() and not path.exists():
                return True
            status = path.stat() if self.may_link else path.lstat()
            return stat.S_ISREG(status.st_mode) and (status.st_size == 0 or self.holds(path))
        except (OSError, ValueError, RecursionError):
            return False


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder. ``entries`` maps patterns of relative names, ``a/b`` and for folders ``a/``, to kinds. Where
    ``needs`` names files, a folder that is not empty has at least one of them.
    """

    noun: str
    entries: Mapping[str, FileKind]
    needs: tuple[str, ...] = ()

    def foreign(self, folder: Path) -> str | None:
        """The first name in ``folder`` that is not of this kind, None where there is none."""
        names = []
        for entry, name in _walk(folder):
            names.append(name)
            kind = next((kind for pattern, kind in self.entries.items() if re.fullmatch(pattern, name)), None)
            if kind is None or not (name.endswith("/") or kind.recognises(Path(entry))):
                return name
        if names and self.needs and not set(self.needs) & set(names):
            return names[0]
        return None


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[os.DirEntry[str], str]]:
    """Everything below a folder with its relative name, each folder before what is in it. Links are not followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            yield entry, prefix + entry.name + ("/" if is_folder else "")
            if is_folder:
                yield from _walk(Path(entry), f"{prefix}{entry.name}/")


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def _is_safetensors(path: Path) -> bool:
    head = _head(path)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _zip_names(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_pickle(path: Path) -> bool:
    return _head(path)[:1] == b"\x80" or any(name.endswith("data.pkl") for name in _zip_names(path))


def begins_with(noun: str, start: bytes, *parts: bytes) -> FileKind:
    """Files that begin with ``start`` and have these parts within their first 4096 bytes."""

    def holds(path: Path) -> bool:
        head = _head(path)
        return head.startswith(start) and all(part in head for part in parts)

    return FileKind(noun, holds)


def json_object(noun: str, *keys: str) -> FileKind:
    """JSON objects that have these keys."""

    def holds(path: Path) -> bool:
        document = json.loads(path.read_bytes())
        return isinstance(document, dict) and document.keys() >= set(keys)

    return FileKind(noun, holds)


ANYTHING = FileKind("anything", lambda path: True)
PNG = begins_with("a PNG image", PNG_SIGNATURE)
HTML = begins_with("an HTML page", b"<!DOCTYPE html>")
NPY = begins_with("a NumPy array", b"\x93NUMPY")
NPZ = FileKind("a NumPy archive", lambda path: {name[-4:] for name in _zip_names(path)} == {".npy"})
PARQUET = begins_with("a Parquet file", b"PAR1")
SAFETENSORS = FileKind("a safetensors file", _is_safetensors)
LINKED_SAFETENSORS = replace(SAFETENSORS, may_link=True)
UPSTREAM_SAFETENSORS = FileKind(
    "a safetensors file outside a checkpoint",
    lambda path: _is_safetensors(path) and not (path.parent / "config.json").exists(),
)
UPSTREAM_PICKLE = FileKind("a PyTorch file", _is_pickle)
JSON_LINES = begins_with("JSON lines", b"{")
