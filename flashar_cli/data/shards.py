"""Code shards: Parquet files of token grids beside a ``manifest.json``.

Columns: ``codes`` list<uint16 or uint32>[H*W] in raster order, ``label`` int or ``caption`` string, ``id`` string and
``view`` int8; one row a view, the views of a picture together. Captions have their features in safetensors files, one
a shard. The manifest holds the SHA-256 of each file. One without ``format_version`` is older or made by hand: rows of
one view, ``files`` without checksums.

Letters: M pictures, A views, H grid rows, W grid columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.config import CaptionPrefix
from flashar_cli.data.codes import CodeSet
from flashar_cli.data.features import open_features
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_LARGEST_UINT16_VOCAB = 65_536


def is_shards(path: Path) -> bool:
    """Whether a folder holds code shards."""
    return (path / MANIFEST).is_file()


def shard_bytes(
    codes: NDArray[np.integer], ids: Sequence[str], text: Sequence[int] | Sequence[str], captions: bool, vocab_size: int
) -> bytes:
    """The Parquet file of codes [M, A, H, W] with the labels or captions ``text`` [M]: the same bytes every time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_pictures, num_views = codes.shape[:2]
    dtype = np.uint16 if vocab_size <= _LARGEST_UINT16_VOCAB else np.uint32
    flat = codes.reshape(num_pictures * num_views, codes.shape[2] * codes.shape[3]).astype(dtype)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    kind = pa.string() if captions else pa.int64()
    columns = {
        "codes": pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1))),
        "caption" if captions else "label": pa.array([value for value in text for _ in range(num_views)], type=kind),
        "id": pa.array([name for name in ids for _ in range(num_views)], type=pa.string()),
        "view": pa.array(np.tile(np.arange(num_views, dtype=np.int8), num_pictures)),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, with ``shards`` in the present form. Raises FlasharError where it is none, or of another format."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest.get("format_version")
        if version is None:
            manifest["shards"] = [{"name": str(name)} for name in manifest["files"]]
        elif version != FORMAT_VERSION:
            raise FlasharError(f"{path} has format_version {version!r}; this flashar reads {FORMAT_VERSION}")
        manifest["grid"] = [int(side) for side in manifest["grid"]]
        assert all(isinstance(shard["name"], str) for shard in manifest["shards"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise FlasharError(f"{path} is not a manifest of code shards ({error!r}); encode again") from None
    return manifest


def read_shards(
    directory: Path, grid: Grid, vocab_size: int, tokenizer_sha256: str | None, prefix: CaptionPrefix | None = None
) -> CodeSet:
    """Reads all shards; the labels, or for a caption ``prefix`` the captions.

    Raises FlasharError for a missing or changed shard, and where they don't fit the model: grid, tokenizer, codes out
    of range, labels instead of captions.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise FlasharError("code shards need the pyarrow package, which comes with datasets; install it") from None

    manifest = read_manifest(directory)
    shape, made_with = tuple(manifest["grid"]), manifest.get("tokenizer_sha256")
    if shape != (grid.height, grid.width):
        raise FlasharError(f"{directory} holds codes of grid {'x'.join(map(str, shape))}; this model's grid is {grid}")
    if made_with and tokenizer_sha256 and made_with != tokenizer_sha256:
        raise FlasharError(
            f"{directory} was encoded with another tokenizer ({made_with[:12]}) than this model's; encode again"
        )
    for shard in manifest["shards"]:
        check_shard(directory, shard)
    column = "caption" if prefix is not None else "label"
    try:
        parts = [_read(directory / shard["name"], column, grid.num_cells) for shard in manifest["shards"]]
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, FlasharError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise FlasharError(f"the shards of {directory} cannot be read ({reason}); encode them again") from None
    if not parts:
        raise FlasharError(f"{directory / MANIFEST} lists no shards; encode again")
    values, ids, views = (np.concatenate([part[index] for part in parts]) for index in range(3))
    text = [value for part in parts for value in part[3]]
    if len(values) and not 0 <= values.min() <= values.max() < vocab_size:
        raise FlasharError(
            f"{directory} has codes {values.min()}..{values.max()}; this model's are 0..{vocab_size - 1}"
        )
    num_views = int(views.max(initial=0)) + 1
    if len(views) % num_views or not np.array_equal(views, np.arange(len(views)) % num_views):
        raise FlasharError(f"the views of {directory} are not 0..{num_views - 1} for every picture; encode again")
    codes, ids = values.reshape(-1, num_views, *shape), ids[::num_views]
    if prefix is None:
        return CodeSet(codes, ids, np.array(text[::num_views], dtype=np.int64))
    files = [directory / shard["captions"]["name"] for shard in manifest["shards"] if shard.get("captions")]
    if not files:
        raise FlasharError(f"{directory} has captions without features; write them with `flashar encode`")
    texts = np.array(text[::num_views], dtype=object)
    return CodeSet(codes, ids, captions=open_features(files, texts, prefix.length, prefix.feature_dim))


def _read(
    path: Path, column: str, num_cells: int
) -> tuple[NDArray[np.integer], NDArray[np.str_], NDArray[np.integer], list[Any]]:
    """One shard: codes [rows, H*W], ids, views, labels or captions."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if column not in table.column_names:
        raise FlasharError(
            f"{path} has no column {column}, which this model reads; its columns are {', '.join(table.column_names)}"
        )
    lists = table["codes"].combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()
    if lengths not in ([num_cells], []) or not np.issubdtype(values.dtype, np.integer):
        raise FlasharError(f"{path} has rows of {lengths} {values.dtype} codes; expected {num_cells} whole numbers")
    views = table["view"].to_numpy() if "view" in table.column_names else np.zeros(len(table), np.int8)
    ids = np.array(table["id"].to_pylist(), dtype=np.str_)
    return values.reshape(-1, num_cells), ids, views, table[column].to_pylist()


def check_shard(directory: Path, shard: dict[str, Any]) -> None:
    """Raises FlasharError that names a file which is missing or is not what was written."""
    for entry in (shard, shard.get("captions")):
        if entry is None:
            continue
        path = directory / entry["name"]
        if not path.is_file():
            raise FlasharError(f"{path} is missing; restore it, or encode again into the same --out")
        if "sha256" in entry and file_sha256(path) != entry["sha256"]:
            raise FlasharError(
                f"{path} is corrupted (its SHA-256 is not the manifest's {entry['sha256'][:12]}); restore it, "
                "or encode again into the same --out"
            )
