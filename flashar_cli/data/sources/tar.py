"""Tar shards in the webdataset layout: members with the same name before its first dot are one sample. Beside its text
it has an image or, with suffix .pt, the image's tokens.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.config.recipe import DATA_DEFAULTS, DataSettings
from flashar_cli.data.sources.base import (
    COLUMNS,
    EXTENSIONS,
    MOST_IMAGE_BYTES,
    Fetch,
    ImageSource,
    Wanted,
    files_below,
    refuse_columns,
    relative_name,
)
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import (
    MOST_DOCUMENT_BYTES,
    MOST_LINE_BYTES,
    check_file,
    decode_text,
    files_sha256,
    open_file,
    parse_json,
)
from flashar_cli.inputs.text import shown

SUFFIX, TOKEN_GRID = ".tar", ".pt"
MOST_HEADER_BYTES = 2**20


class TarShards(ImageSource):
    """One tar file, or all of a folder: images (.jpg, .png, .webp, ...) or token grids (.pt) with .cls, .txt or .json
    beside them. The name of a column is an extension or, for labels and captions, a key of the .json.

    Headers are read once; images are then read from their offsets. Files of token grids are also hashed whole.
    """

    def __init__(self, path: Path, settings: DataSettings, wanted: Wanted) -> None:
        refuse_columns(settings, str(path), "tar shards", but=COLUMNS[1:])
        ids: list[str] = []
        values: list[Any] = []
        self.places: list[tuple[Path, int, int]] = []  # file, offset and size of each image or token grid in bytes
        default = settings.image_column == DATA_DEFAULTS.image_column
        images = (*EXTENSIONS, TOKEN_GRID) if default else (f".{settings.image_column}",)
        kinds, files = set[str](), files_below(path, SUFFIX)
        for file in files:
            name = relative_name(file, path)
            for key, members in _samples(file):
                found = next((end for end in images if end in members), None)
                if found is None:
                    continue
                kinds.add(TOKEN_GRID if found == TOKEN_GRID else "image")
                image = members[found]
                values.append(_text(file, members, settings, wanted, f"sample {key} of {file}"))
                self.places.append((file, image.offset_data, image.size))
                ids.append(f"{name}/{key}")
        if not ids:
            raise FlasharError(f"--data {path} holds no images in its {SUFFIX} files ({', '.join(images)})")
        if len(kinds) > 1:
            raise FlasharError(f"--data {path} has samples with images and others with {TOKEN_GRID} tokens; part them")
        self.holds_tokens = kinds == {TOKEN_GRID}
        # Token grids of other values have the same size.
        content = [files_sha256(files)] if self.holds_tokens else []
        places = (f"{offset} {size}" for _, offset, size in self.places)
        self._list(ids, values, [*ids, *map(str, values), *places, *content], f"--data {path}", wanted)

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Parts of the files, read when fetched."""
        most = MOST_DOCUMENT_BYTES if self.holds_tokens else MOST_IMAGE_BYTES
        for row in rows.tolist():
            file, offset, size = self.places[row]
            yield partial(_read_at, file, offset, size, most)


class _Headers(io.FileIO):
    """A file of which tarfile reads headers alone, so that a larger read means a damaged extended header."""

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
                archive.members = []  # type: ignore[attr-defined] # or it would keep all members in memory
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
        ending = "." + extension.rpartition(".")[2].lower()
        if ending == TOKEN_GRID and ending in members:
            raise FlasharError(
                f"{file} has two {ending} members named {shown(key)} before their first dot; rename them"
            )
        members[ending] = member
    if members:
        yield key, members


def _text(file: Path, members: dict[str, tarfile.TarInfo], settings: DataSettings, wanted: Wanted, what: str) -> Any:
    """The class or the caption of one sample. Raises FlasharError where it has none."""

    def read(extension: str) -> str:
        content = _read_at(file, members[extension].offset_data, members[extension].size, MOST_LINE_BYTES)
        return decode_text(content, f"the {extension} of {what}").strip()

    key = wanted.column(settings, ())
    plain = (".txt" if wanted.captions else ".cls") if key == wanted.column(DATA_DEFAULTS, ()) else f".{key}"
    if plain in members:
        return read(plain)
    if ".json" in members:
        document = parse_json(read(".json"), f"the .json of {what}")
        present = document if isinstance(document, dict) else {}
        key = wanted.column(settings, present)
        if key not in present:
            raise FlasharError(f"{what} has no '{key}' in its .json")
        return present[key]
    raise FlasharError(f"{what} has neither {plain} nor .json beside it; this model needs its {key}")


def _read_at(file: Path, offset: int, size: int, most: int) -> bytes:
    if size > most:
        raise FlasharError(f"a member of {file} has {size} bytes; expected at most {most}")
    with open_file(file) as content:
        content.seek(offset)
        return content.read(size)
