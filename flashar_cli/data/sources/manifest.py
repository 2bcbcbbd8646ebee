"""A JSONL manifest: one image a line, ``{"image": PATH, "label" or "caption": ..., "id": ...}``. A caption may also be
called ``text`` or ``prompt``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.sources.base import COLUMNS, Fetch, ImageSource, Wanted, read_image, refuse_columns
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import decode_text, parse_json, read_lines
from flashar_cli.inputs.text import shown

SUFFIX = ".jsonl"


class JsonLines(ImageSource):
    """Images by their paths, which are relative to the manifest's folder and stay inside; an image without ``id`` has
    its path as id.
    """

    def __init__(self, path: Path, settings: DataSettings, wanted: Wanted) -> None:
        refuse_columns(settings, str(path), "a JSONL manifest", but=COLUMNS[1:])
        key = settings.image_column
        ids: list[str] = []
        values: list[Any] = []
        self.files: list[Path] = []
        for number, line in read_lines(path, f"--data {path}"):
            if not line.strip():
                continue
            where = f"line {number} of {path}"
            entry = parse_json(decode_text(line, where), where)
            present = entry.keys() if isinstance(entry, dict) else set()
            text = wanted.column(settings, present)
            absent = {key, text} - present
            image = entry[key] if not absent else None
            name = entry.get("id", image) if not absent else None
            if not isinstance(image, str) or type(name) not in (str, int):
                raise FlasharError(
                    f"{where} lacks {', '.join(sorted(absent)) or 'a path or an id that is text'}; expected "
                    f'{{"{key}": PATH, "{text}": ...}}, which is what this model reads'
                )
            ids.append(str(name))
            values.append(entry[text])
            self.files.append(_inside(path.parent, image, where))
        if not ids:
            raise FlasharError(f"--data {path} is empty; expected one JSON object a line")
        sizes = (str(os.path.getsize(file) if os.path.isfile(file) else None) for file in self.files)
        self._list(ids, values, [*ids, *map(str, values), *sizes], f"--data {path}", wanted)

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Files, read when fetched."""
        for row in rows.tolist():
            yield partial(read_image, self.files[row])


def _inside(folder: Path, image: str, where: str) -> Path:
    """The path of an image. Raises FlasharError for one outside the folder."""
    root, path = (os.path.abspath(place) for place in (folder, folder / image))
    if os.path.commonpath([root, path]) != root:
        raise FlasharError(
            f"{where} names the image {shown(image)}, outside the folder of the list; move the list above its images"
        )
    return folder / image
