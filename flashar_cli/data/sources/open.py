"""Which kind of source ``--data`` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flashar_cli.data.sources import manifest, parquet, tar
from flashar_cli.data.sources.base import Columns, PictureSource, Wanted, files_below, require_labels
from flashar_cli.data.sources.folder import ImageFolder
from flashar_cli.data.sources.hub import HubDataset
from flashar_cli.data.sources.shapes import SHAPES, parse_shapes
from flashar_cli.errors import FlasharError
from flashar_cli.reading import check_file

_BY_SUFFIX: dict[str, Callable[[Path, Columns, Wanted], PictureSource]] = {
    parquet.SUFFIX: parquet.ParquetFiles,
    tar.SUFFIX: tar.TarShards,
    manifest.SUFFIX: manifest.JsonLines,
}
_FOLDERS_OF = (parquet.SUFFIX, tar.SUFFIX)


def open_pictures(data: str, wanted: Wanted, columns: Columns | None = None) -> PictureSource:
    """``shapes[:N]``, a folder of pictures, Parquet files, tar shards, a JSONL manifest, or a `datasets` id.

    Raises FlasharError where it is none of these, or lacks what the model reads.
    """
    source = _open(data, wanted, columns or Columns())
    if not len(source.ids):
        raise FlasharError(f"--data {data} holds no pictures")
    return source


def _open(data: str, wanted: Wanted, columns: Columns) -> PictureSource:
    path = Path(data).expanduser()
    if data.partition(":")[0] == SHAPES and not path.exists():
        columns.refuse(data, "drawn shapes")
        require_labels(data, wanted)
        return parse_shapes(data)
    if path.is_file():
        if path.suffix not in _BY_SUFFIX:
            raise FlasharError(f"--data {data} is a {path.suffix or 'nameless'} file; expected {', '.join(_BY_SUFFIX)}")
        return _BY_SUFFIX[path.suffix](path, columns, wanted)
    if path.is_dir():
        for suffix in _FOLDERS_OF:
            if files_below(path, suffix):
                return _BY_SUFFIX[suffix](path, columns, wanted)
        columns.refuse(data, "a folder of pictures")
        return ImageFolder(path, require_labels(data, wanted), wanted.class_names)
    if path.exists():
        check_file(path, f"--data {data}")
    if data.startswith((".", "/", "~")) or path.suffix in _BY_SUFFIX:
        raise FlasharError(
            f"--data {data} does not exist; expected a folder of pictures or of code shards, a {parquet.SUFFIX}, "
            f"{tar.SUFFIX} or {manifest.SUFFIX} file, a `datasets` id, or shapes[:N]"
        )
    return HubDataset(data, columns, wanted)
