"""Token shards: Parquet files of token grids beside a ``manifest.json``.

Columns: ``codes`` list<uint16 or uint32>[H*W] in raster order, ``label`` int or ``caption`` string, ``id`` string and
``view`` int8; a row for each view, those of an image in succession. Caption features are in a safetensors file for each
shard. The manifest holds the SHA-256 of each file.

Letters: M images, A views, H grid rows, W grid columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.conditions import ConditionKind
from flashar_cli.data.parquet import open_parquet
from flashar_cli.data.records import MANIFEST, FileEntry, OldManifest, read_manifest
from flashar_cli.data.sources.base import Wanted, as_ids, read_text
from flashar_cli.data.tokens import TokenSet
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.inputs.reading import open_file

_LARGEST_UINT16_VOCAB = 65_536


def is_shards(path: Path) -> bool:
    """Whether a folder holds token shards."""
    return (path / MANIFEST).exists()


def shard_bytes(
    tokens: NDArray[np.integer],
    ids: Sequence[str],
    text: Sequence[int] | Sequence[str],
    captions: bool,
    vocab_size: int,
) -> bytes:
    """The Parquet file of tokens [M, A, H, W] with the labels or captions ``text`` [M]; deterministic."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_images, num_views = tokens.shape[:2]
    dtype = np.uint16 if vocab_size <= _LARGEST_UINT16_VOCAB else np.uint32
    flat = tokens.reshape(num_images * num_views, tokens.shape[2] * tokens.shape[3]).astype(dtype)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    kind = pa.string() if captions else pa.int64()
    columns = {
        "codes": pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1))),
        "caption" if captions else "label": pa.array([value for value in text for _ in range(num_views)], type=kind),
        "id": pa.array([name for name in ids for _ in range(num_views)], type=pa.string()),
        "view": pa.array(np.tile(np.arange(num_views, dtype=np.int8), num_images)),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_shards(
    directory: Path, grid: Grid, vocab_size: int, tokenizer_sha256: str | None, conditions: ConditionKind
) -> TokenSet:
    """Reads all shards, with the labels or captions that ``conditions`` want.

    Raises FlasharError for a missing or changed shard, and for shards that don't fit the model: another grid or
    tokenizer, tokens out of range, labels instead of captions.
    """
    manifest = read_manifest(directory)
    shape, made_with = manifest.grid, manifest.tokenizer_sha256
    if shape != (grid.height, grid.width):
        raise FlasharError(f"{directory} holds tokens of grid {'x'.join(map(str, shape))}; this model's grid is {grid}")
    if made_with and tokenizer_sha256 and made_with != tokenizer_sha256:
        raise FlasharError(
            f"{directory} was encoded with another tokenizer ({made_with[:12]}) than this model's; encode again"
        )
    if isinstance(manifest, OldManifest):
        names, features = manifest.files, []
    else:
        for shard in manifest.shards:
            check_files(directory, shard.files)
        names = tuple(shard.name for shard in manifest.shards)
        features = [directory / shard.captions.name for shard in manifest.shards if shard.captions is not None]
    parts = [_read(directory / name, conditions.wanted, grid.num_cells) for name in names]
    values, ids, views = (np.concatenate([part[index] for part in parts]) for index in range(3))
    text = [value for part in parts for value in part[3]]
    if len(values) and not 0 <= values.min() <= values.max() < vocab_size:
        raise FlasharError(
            f"{directory} has tokens {values.min()}..{values.max()}; this model's are 0..{vocab_size - 1}"
        )
    num_views = int(views.max(initial=0)) + 1
    if len(views) % num_views or not np.array_equal(views, np.arange(len(views)) % num_views):
        raise FlasharError(f"the views of {directory} are not 0..{num_views - 1} for every image; encode again")
    tokens, ids = values.reshape(-1, num_views, *shape), ids[::num_views]
    return TokenSet(tokens, ids, conditions.read(text[::num_views], features, directory))


def is_intact(directory: Path, entry: FileEntry) -> bool:
    """Whether a file exists and is unchanged since it was written."""
    path = directory / entry.name
    return path.is_file() and file_sha256(path) == entry.sha256


def check_files(directory: Path, entries: Sequence[FileEntry]) -> None:
    """Raises FlasharError that names a missing or changed file."""
    for entry in entries:
        path = directory / entry.name
        if not path.exists():
            raise FlasharError(f"{path} is missing; restore it, or encode again into the same --out")
        if file_sha256(path) != entry.sha256:
            raise FlasharError(
                f"{path} is corrupted (its SHA-256 is not the manifest's {entry.sha256[:12]}); restore it, "
                "or encode again into the same --out"
            )


def _read(
    path: Path, wanted: Wanted, num_cells: int
) -> tuple[NDArray[np.integer], NDArray[np.str_], NDArray[np.integer], list[Any]]:
    """One shard: tokens [rows, H*W], ids, views, labels or captions. Raises FlasharError where it lacks them."""
    column = "caption" if wanted.captions else "label"
    with open_parquet(path) as file:
        table = file.read()
        missing = {"codes", "id", column} - set(table.column_names)
        if missing:
            raise FlasharError(
                f"{path} has no column {', '.join(sorted(missing))}, which this model reads; its columns are "
                f"{', '.join(table.column_names)}"
            )
        lists = table["codes"].combine_chunks()
        values = lists.flatten().to_numpy(zero_copy_only=False)
        lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()
        views = table["view"].to_numpy() if "view" in table.column_names else np.zeros(len(table), np.int8)
        ids = as_ids(table["id"].to_pylist(), str(path))
        labels, captions = read_text(table[column].to_pylist(), str(path), wanted)
    if lengths not in ([num_cells], []) or not np.issubdtype(values.dtype, np.integer):
        raise FlasharError(f"{path} has rows of {lengths} {values.dtype} tokens; expected {num_cells} whole numbers")
    if not np.issubdtype(views.dtype, np.integer):
        raise FlasharError(f"{path} has views of {views.dtype}; expected whole numbers")
    return values.reshape(-1, num_cells), ids, views, list(captions or ()) if labels is None else labels.tolist()
