"""Tar shards in the webdataset layout: members that share a name up to its first dot are one sample."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.sources.base import (
    EXTENSIONS,
    MOST_PICTURE_BYTES,
    Columns,
    Fetch,
    Wanted,
    as_ids,
    check_unique,
    digest,
    files_below,
    read_text,
    relative_name,
)
from flashar_cli.errors import FlasharError
from flashar_cli.reading import MOST_LINE_BYTES, check_file, decode_text, open_file, parse_json

SUFFIX = ".tar"
MOST_HEADER_BYTES = 2**20


class TarShards:
    """One tar file, or all of a folder: pictures (.jpg, .png, .webp, ...) with .cls, .txt or .json beside them. A
    column that is named is an extension, or for labels and captions a key of the .json.

    Headers are read once; a picture is then read from its place in the file.
    """

    def __init__(self, path: Path, columns: Columns, wanted: Wanted) -> None:
        columns.refuse(str(path), "tar shards", but=("image", "label", "caption"))
        ids: list[str] = []
        values: list[Any] = []
        self.places: list[tuple[Path, int, int]] = []  # file, offset and size of each picture in bytes
        pictures = EXTENSIONS if columns.image == Columns().image else (f".{columns.image}",)
        for file in files_below(path, SUFFIX):
            name = relative_name(file, path)
            for key, members in _samples(file):
                picture = next((members[end] for end in pictures if end in members), None)
                if picture is None:
                    continue
                values.append(_text(file, members, columns, wanted, f"sample {key} of {file}"))
                self.places.append((file, picture.offset_data, picture.size))
                ids.append(f"{name}/{key}")
        if not ids:
            raise FlasharError(f"--data {path} holds no pictures in its {SUFFIX} files ({', '.join(pictures)})")
        self.ids = as_ids(ids, f"--data {path}")
        check_unique(self.ids, f"--data {path}")
        self.labels, self.captions = read_text(values, f"--data {path}", wanted)
        places = (f"{offset} {size}" for _, offset, size in self.places)
        self.fingerprint = digest([*ids, *map(str, values), *places])

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Parts of the files, read when fetched."""
        for row in rows.tolist():
            yield partial(_read_at, *self.places[row])


class _Headers(io.FileIO):
    """The file that tarfile reads headers from, and nothing else: an extended header that claims to be larger than any
    is damaged.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _members(file: Path) -> Iterator[tarfile.TarInfo]:
    """The regular members. Raises FlasharError for what is no tar file, or is damaged."""
    size = check_file(file)
    try:
        with _Headers(file) as content, tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                whole = member.offset_data + member.size <= size and not member.issparse()
                if member.size < 0 or (member.isfile() and not whole):
                    raise tarfile.ReadError(f"member {member.name[:80]!r} of {member.size} bytes is not whole")
                if member.isfile():
                    yield member
                archive.members = []  # type: ignore[attr-defined] # it would keep all of them
    except Exception as error:  # tarfile raises about any type on damaged headers; all mean the same here
        if isinstance(error, FlasharError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FlasharError(f"{file} cannot be read as an uncompressed tar file ({reason})") from None


def _samples(file: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, members by lower-case extension) of consecutive members with one key."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in _members(file):
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:
            continue
        if folder + slash + stem != key and members:
            yield key, members
            members = {}
        key = folder + slash + stem
        members["." + extension.rpartition(".")[2].lower()] = member
    if members:
        yield key, members


def _text(file: Path, members: dict[str, tarfile.TarInfo], columns: Columns, wanted: Wanted, what: str) -> Any:
    """The class or the caption of one sample. Raises FlasharError where it has none."""

    def read(extension: str) -> str:
        content = _read_at(file, members[extension].offset_data, members[extension].size, MOST_LINE_BYTES)
        return decode_text(content, f"the {extension} of {what}").strip()

    key = columns.text(wanted)
    plain = (".txt" if wanted.captions else ".cls") if key == Columns().text(wanted) else f".{key}"
    if plain in members:
        return read(plain)
    if ".json" in members:
        document = parse_json(read(".json"), f"the .json of {what}")
        if not isinstance(document, dict) or key not in document:
            raise FlasharError(f"{what} has no '{key}' in its .json")
        return document[key]
    raise FlasharError(f"{what} has neither {plain} nor .json beside its picture; this model needs its {key}")


def _read_at(file: Path, offset: int, size: int, most: int = MOST_PICTURE_BYTES) -> bytes:
    if size > most:
        raise FlasharError(f"a member of {file} has {size} bytes; expected at most {most}")
    with open_file(file) as content:
        content.seek(offset)
        return content.read(size)
