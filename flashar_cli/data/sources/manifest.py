"""A JSONL manifest: one picture a line, ``{"image": PATH, "label" or "caption": ..., "id": ...}``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.sources.base import Columns, Fetch, Wanted, check_unique, digest, read_text
from flashar_cli.errors import FlasharError

SUFFIX = ".jsonl"


class JsonLines:
    """Pictures named by path, relative to the manifest; without an ``id`` that path is their id."""

    def __init__(self, path: Path, columns: Columns, wanted: Wanted) -> None:
        columns.refuse(str(path), "a JSONL manifest", but=("image", "label", "caption"))
        text = columns.text(wanted)
        ids: list[str] = []
        values: list[Any] = []
        self.files: list[Path] = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FlasharError(f"--data {path} cannot be read ({error})") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image, value = str(entry[columns.image]), entry[text]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise FlasharError(
                    f"line {number} of {path} is wrong ({error!r}); "
                    f'expected {{"{columns.image}": PATH, "{text}": ...}}, which is what this model reads'
                ) from None
            ids.append(str(entry.get("id", image)))
            values.append(value)
            self.files.append(path.parent / image)
        if not ids:
            raise FlasharError(f"--data {path} is empty; expected one JSON object a line")
        self.ids = np.array(ids)
        check_unique(self.ids, f"--data {path}")
        self.labels, self.captions = read_text(values, f"--data {path}", wanted)
        sizes = (str(file.stat().st_size if file.is_file() else None) for file in self.files)
        self.fingerprint = digest([*ids, *map(str, values), *sizes])

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Files, read when fetched."""
        for row in rows.tolist():
            yield self.files[row].read_bytes
