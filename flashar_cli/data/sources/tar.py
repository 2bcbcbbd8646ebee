"""Tar shards in the webdataset layout: members that share a name up to its first dot are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.sources.base import (
    EXTENSIONS,
    Columns,
    Fetch,
    Wanted,
    check_unique,
    digest,
    files_below,
    read_text,
    relative_name,
)
from flashar_cli.errors import FlasharError

SUFFIX = ".tar"


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
            try:
                with tarfile.open(file, "r:") as archive, open(file, "rb") as content:
                    for key, members in _samples(archive):
                        picture = next((members[end] for end in pictures if end in members), None)
                        if picture is None:
                            continue
                        values.append(_text(content, members, columns, wanted, f"sample {key} of {file}"))
                        self.places.append((file, picture.offset_data, picture.size))
                        ids.append(f"{name}/{key}")
            except (OSError, tarfile.TarError) as error:
                raise FlasharError(f"{file} cannot be read as an uncompressed tar file ({error})") from None
        if not ids:
            raise FlasharError(f"--data {path} holds no pictures in its {SUFFIX} files ({', '.join(pictures)})")
        self.ids = np.array(ids)
        check_unique(self.ids, f"--data {path}")
        self.labels, self.captions = read_text(values, f"--data {path}", wanted)
        places = (f"{offset} {size}" for _, offset, size in self.places)
        self.fingerprint = digest([*ids, *map(str, values), *places])

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Parts of the files, read when fetched."""
        for row in rows.tolist():
            yield partial(_read_at, *self.places[row])


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, members by lower-case extension) of consecutive members with one key."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in archive:
        if not member.isfile():
            continue
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


def _text(content: IO[bytes], members: dict[str, tarfile.TarInfo], columns: Columns, wanted: Wanted, what: str) -> Any:
    """The class or the caption of one sample. Raises FlasharError where it has none."""

    def read(extension: str) -> str:
        content.seek(members[extension].offset_data)
        return content.read(members[extension].size).decode("utf-8").strip()

    key = columns.text(wanted)
    plain = (".txt" if wanted.captions else ".cls") if key == Columns().text(wanted) else f".{key}"
    try:
        if plain in members:
            return read(plain)
        if ".json" in members:
            return json.loads(read(".json"))[key]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise FlasharError(f"{what} has no readable '{key}' ({error!r})") from None
    raise FlasharError(f"{what} has neither {plain} nor .json beside its picture; this model needs its {key}")


def _read_at(file: Path, offset: int, size: int) -> bytes:
    with open(file, "rb") as content:
        content.seek(offset)
        return content.read(size)
