"""Code shards: Parquet files of token grids beside a ``manifest.json``.

Columns: ``codes`` list<uint16 or uint32>[H*W] in raster order, ``label`` int, ``id`` string.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from flashar_cli.data.codes import CodeSet
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

MANIFEST = "manifest.json"


def is_shards(path: Path) -> bool:
    """Whether a folder holds code shards."""
    return (path / MANIFEST).is_file()


def write_shards(
    directory: Path, data: CodeSet, grid: Grid, tokenizer_sha256: str | None, shard_size: int = 10_000
) -> None:
    """Writes shards of ``shard_size`` pictures and their manifest into an existing folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = []
    for index, start in enumerate(range(0, len(data), shard_size)):
        part = data.take(slice(start, start + shard_size))
        columns: dict[str, Any] = {"codes": pa.array(list(part.codes.reshape(len(part), -1).astype(np.uint32)))}
        if part.labels is not None:
            columns["label"] = pa.array(part.labels)
        columns["id"] = pa.array(part.ids.tolist())
        names.append(f"codes-{index:05d}.parquet")
        pq.write_table(pa.table(columns), directory / names[-1])
    manifest = {
        "grid": [grid.height, grid.width],
        "tokenizer_sha256": tokenizer_sha256,
        "num_images": len(data),
        "files": names,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_shards(directory: Path, grid: Grid, vocab_size: int, tokenizer_sha256: str | None) -> CodeSet:
    """Reads all shards. Raises FlasharError where they don't fit the model: grid, tokenizer, codes out of range."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise FlasharError("code shards need the pyarrow package, which comes with datasets; install it") from None

    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        shape, files = tuple(manifest["grid"]), list(manifest["files"])
        made_with = manifest.get("tokenizer_sha256")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise FlasharError(
            f"{directory / MANIFEST} is not a manifest of code shards ({error!r}); encode again"
        ) from None
    if shape != (grid.height, grid.width):
        raise FlasharError(f"{directory} holds codes of grid {'x'.join(map(str, shape))}; this model's grid is {grid}")
    if made_with and tokenizer_sha256 and made_with != tokenizer_sha256:
        raise FlasharError(
            f"{directory} was encoded with another tokenizer ({made_with[:12]}) than this model's; encode again"
        )
    try:
        table = pa.concat_tables([pq.read_table(directory / name) for name in files])
        codes = np.array(table["codes"].to_pylist(), dtype=np.int64)
        labels = np.array(table["label"].to_pylist(), dtype=np.int64)
        ids = np.array([str(name) for name in table["id"].to_pylist()])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FlasharError(f"the shards of {directory} cannot be read ({reason}); encode them again") from None
    if codes.ndim != 2 or codes.shape[1] != grid.num_cells:
        raise FlasharError(f"{directory} has code rows of shape {codes.shape}; expected [M, {grid.num_cells}]")
    if len(codes) and not 0 <= codes.min() <= codes.max() < vocab_size:
        raise FlasharError(f"{directory} has codes {codes.min()}..{codes.max()}; this model's are 0..{vocab_size - 1}")
    return CodeSet(codes=codes.astype(np.int32).reshape(-1, *shape), ids=ids, labels=labels)
