"""Local Parquet files: a column of pictures beside one of labels or captions, as `datasets` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.parquet import open_parquet
from flashar_cli.data.sources.base import (
    Columns,
    Fetch,
    Wanted,
    as_ids,
    digest,
    files_below,
    missing_column,
    read_picture,
    read_text,
)
from flashar_cli.data.sources.base import relative_name as name_in
from flashar_cli.errors import FlasharError

SUFFIX = ".parquet"


class ParquetFiles:
    """One file, or all of a folder. Labels or captions are read first, pictures by row group, and only groups that hold
    a chosen one.
    """

    def __init__(self, path: Path, columns: Columns, wanted: Wanted) -> None:
        self.columns = columns
        self.files = _of_split(files_below(path, SUFFIX), path, columns.split)
        self.starts = [0]  # row at which each file begins
        ids, values, marks = [], [], []
        for file in self.files:
            name = name_in(file, path)
            with open_parquet(file) as footer:
                present = footer.schema_arrow.names
                if columns.text(wanted) not in present:
                    raise missing_column(f"{file}", columns, wanted, present)
                if columns.image not in present:
                    raise FlasharError(
                        f"{file} has no column '{columns.image}'; its columns are {', '.join(present)}; "
                        "choose one with --image-column"
                    )
                num_rows = footer.metadata.num_rows
                found = footer.read(columns=[columns.text(wanted)]).column(0).to_pylist()
            if len(found) != num_rows:
                raise FlasharError(f"{file} has {len(found)} rows and claims {num_rows}; write it again")
            values += found
            ids += [f"{name}:{row:09d}" for row in range(num_rows)]
            self.starts.append(self.starts[-1] + num_rows)
            marks.append(f"{name} {file.stat().st_size} {num_rows}")
        self.ids = as_ids(ids, f"--data {path}")
        self.labels, self.captions = read_text(values, f"--data {path}", wanted)
        self.fingerprint = digest([*marks, columns.image, *map(str, values)])

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """The bytes of each picture, a row group in memory at a time."""
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
                        column = reader.read_row_group(group, columns=[self.columns.image]).column(0)
                        for row in chosen.tolist():
                            yield picture_bytes(column[row].as_py())
                    start = stop


def picture_bytes(value: Any) -> Fetch:
    """A cell of an image column: bytes, or ``{bytes, path}`` as `datasets` stores pictures undecoded."""

    def fetch() -> bytes:
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str):
            raise OSError("the image column holds no picture here")
        return read_picture(Path(path))

    return fetch


def _of_split(files: list[Path], path: Path, split: str | None) -> list[Path]:
    """All files, or those that `datasets` would name after the split: ``train-00000-of-00001.parquet``."""
    if split is None:
        return files
    chosen = [file for file in files if file.name.startswith(f"{split}-") or file.stem == split]
    if not chosen:
        raise FlasharError(f"--split {split}: no file of {path} is named {split}-*{SUFFIX}; leave it out to take all")
    return chosen
