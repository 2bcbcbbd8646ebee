"""A JSONL manifest: one picture a line, ``{"image": PATH, "label" or "caption": ..., "id": ...}``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.sources.base import (
    Columns,
    Fetch,
    Wanted,
    as_ids,
    check_unique,
    digest,
    read_picture,
    read_text,
)
from flashar_cli.errors import FlasharError
from flashar_cli.reading import decode_text, parse_json, read_lines

SUFFIX = ".jsonl"


class JsonLines:
    """Pictures named by path, relative to the manifest; without an ``id`` that path is their id."""

    def __init__(self, path: Path, columns: Columns, wanted: Wanted) -> None:
        columns.refuse(str(path), "a JSONL manifest", but=("image", "label", "caption"))
        text = columns.text(wanted)
        ids: list[str] = []
        values: list[Any] = []
        self.files: list[Path] = []
        for number, line in read_lines(path, f"--data {path}"):
            if not line.strip():
                continue
            where = f"line {number} of {path}"
            entry = parse_json(decode_text(line, where), where)
            absent = {columns.image, text} - entry.keys() if isinstance(entry, dict) else {columns.image, text}
            image = entry[columns.image] if not absent else None
            name = entry.get("id", image) if not absent else None
            if not isinstance(image, str) or type(name) not in (str, int):
                raise FlasharError(
                    f"{where} lacks {', '.join(sorted(absent)) or 'a path or an id that is text'}; expected "
                    f'{{"{columns.image}": PATH, "{text}": ...}}, which is what this model reads'
                )
            ids.append(str(name))
            values.append(entry[text])
            self.files.append(path.parent / image)
        if not ids:
            raise FlasharError(f"--data {path} is empty; expected one JSON object a line")
        self.ids = as_ids(ids, f"--data {path}")
        check_unique(self.ids, f"--data {path}")
        self.labels, self.captions = read_text(values, f"--data {path}", wanted)
        sizes = (str(os.path.getsize(file) if os.path.isfile(file) else None) for file in self.files)
        self.fingerprint = digest([*ids, *map(str, values), *sizes])

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Files, read when fetched."""
        for row in rows.tolist():
            yield partial(read_picture, self.files[row])
