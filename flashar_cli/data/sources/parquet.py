"""Local Parquet files: a column of images beside one of labels or captions, as `datasets` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.parquet import open_parquet
from flashar_cli.data.sources.base import Fetch, ImageSource, Wanted, choose_column, files_below, read_image
from flashar_cli.data.sources.base import relative_name as name_in
from flashar_cli.errors import FlasharError

SUFFIX = ".parquet"


class ParquetFiles(ImageSource):
    """One file, or all of a folder. Labels or captions are read first, images later, and only the row groups that hold
    chosen ones.
    """

    def __init__(self, path: Path, settings: DataSettings, wanted: Wanted) -> None:
        self.image_column = settings.image_column
        self.files = _of_split(files_below(path, SUFFIX), path, settings.split)
        self.starts = [0]  # row at which each file begins
        ids, values, marks = [], [], []
        for file in self.files:
            name = name_in(file, path)
            with open_parquet(file) as footer:
                column = choose_column(str(file), settings, wanted, footer.schema_arrow.names)
                num_rows = footer.metadata.num_rows
                found = footer.read(columns=[column]).column(0).to_pylist()
            if len(found) != num_rows:
                raise FlasharError(f"{file} has {len(found)} rows and claims {num_rows}; write it again")
            values += found
            ids += [f"{name}:{row:09d}" for row in range(num_rows)]
            self.starts.append(self.starts[-1] + num_rows)
            marks.append(f"{name} {file.stat().st_size} {num_rows}")
        marks += [settings.image_column, *map(str, values)]
        self._list(ids, values, marks, f"--data {path}", wanted)

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """The bytes of each image, with one row group in memory at a time."""
        for file, first, end in zip(self.files, self.starts[:-1], self.starts[1:], strict=True):
            inside = rows[(rows >= first) & (rows < end)] - first
            if not len(inside):
                continue
            with open_parquet(file) as reader:
                start = 0
                for group in range(reader.num_row_groups):
                    stop = start + reader.metadata.row_group(group).num_rows
                    chosen = inside[(inside >= start) & (inside < stop)] - start
                    if len(chosen):
                        column = reader.read_row_group(group, columns=[self.image_column]).column(0)
                        for row in chosen.tolist():
                            yield image_bytes(column[row].as_py())
                    start = stop


def image_bytes(value: Any) -> Fetch:
    """A cell of an image column: bytes, or ``{bytes, path}``, which `datasets` stores for undecoded images."""

    def fetch() -> bytes:
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str):
            raise OSError("the image column holds no image here")
        return read_image(Path(path))

    return fetch


def _of_split(files: list[Path], path: Path, split: str | None) -> list[Path]:
    """All files, or those of a split, which `datasets` names ``train-00000-of-00001.parquet`` and so on."""
    if split is None:
        return files
    chosen = [file for file in files if file.name.startswith(f"{split}-") or file.stem == split]
    if not chosen:
        raise FlasharError(f"--split {split}: no file of {path} is named {split}-*{SUFFIX}; leave it out to take all")
    return chosen
