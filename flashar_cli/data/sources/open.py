"""Opens the source that ``--data`` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flashar_cli.config.recipe import DATA_DEFAULTS, DataSettings
from flashar_cli.data.sources import manifest, parquet, tar
from flashar_cli.data.sources.base import ImageSource, Wanted, files_below, refuse_columns
from flashar_cli.data.sources.folder import CaptionedFolder, ImageFolder
from flashar_cli.data.sources.hub import HubDataset
from flashar_cli.data.sources.shapes import SEEDS, parse_shapes
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import check_file

_BY_SUFFIX: dict[str, Callable[[Path, DataSettings, Wanted], ImageSource]] = {
    parquet.SUFFIX: parquet.ParquetFiles,
    tar.SUFFIX: tar.TarShards,
    manifest.SUFFIX: manifest.JsonLines,
}


def open_images(data: str, wanted: Wanted, settings: DataSettings = DATA_DEFAULTS) -> ImageSource:
    """``shapes[:N]``, a folder of images, Parquet files, tar shards, a JSONL manifest, or a `datasets` id.

    Raises FlasharError where it is none of these, or lacks what the model reads.
    """
    source = _open(data, wanted, settings)
    if not len(source.ids):
        raise FlasharError(f"--data {data} holds no images")
    return source


def _open(data: str, wanted: Wanted, settings: DataSettings) -> ImageSource:
    path = Path(data).expanduser()
    if data.partition(":")[0] in SEEDS and not path.exists():
        refuse_columns(settings, data, "drawn shapes")
        return parse_shapes(data, wanted)
    if path.is_file():
        if path.suffix not in _BY_SUFFIX:
            raise FlasharError(f"--data {data} is a {path.suffix or 'nameless'} file; expected {', '.join(_BY_SUFFIX)}")
        return _BY_SUFFIX[path.suffix](path, settings, wanted)
    if path.is_dir():
        for suffix in (parquet.SUFFIX, tar.SUFFIX):
            if files_below(path, suffix):
                return _BY_SUFFIX[suffix](path, settings, wanted)
        refuse_columns(settings, data, "a folder of images")
        if wanted.num_classes is None:
            return CaptionedFolder(path)
        return ImageFolder(path, wanted.num_classes, wanted.class_names)
    if path.exists():
        check_file(path, f"--data {data}")
    if data.startswith((".", "/", "~")) or path.suffix in _BY_SUFFIX:
        raise FlasharError(
            f"--data {data} does not exist; expected a folder of images or of token shards, a {parquet.SUFFIX}, "
            f"{tar.SUFFIX} or {manifest.SUFFIX} file, a `datasets` id, or shapes[:N]"
        )
    return HubDataset(data, settings, wanted)
