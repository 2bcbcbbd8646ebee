"""One shard: images to tokens, tokens and captions to files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.conditions.base import FeatureWriter
from flashar_cli.data.decode import BadImage
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.records import BadEntry, FileEntry, ShardRecord
from flashar_cli.data.shards import shard_bytes
from flashar_cli.data.sources.base import Fetch
from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file

WORK = ".encoding"  # the hidden folder inside --out

Progress = Callable[[int], None]


def prepared_or_bad(prepare: Callable[[Any], NDArray], fetch: Fetch) -> NDArray | BadImage:
    """Fetches an image or its tokens and prepares them for an encoder, or says why they can't be read."""
    try:
        return prepare(fetch())
    except BadImage as error:
        return error
    except FlasharError as error:
        return BadImage(str(error))
    except OSError as error:
        return BadImage(error.strerror or str(error))


def encode_shard(
    job: EncodeJob,
    out: Path,
    shard: int,
    images: Iterator[NDArray | BadImage],
    features: FeatureWriter | None,
    progress: Progress,
) -> ShardRecord:
    """Writes one shard; returns its entry in the manifest and its bad images."""
    rows, encoder, good, bad = job.shard_rows(shard), job.encoder, [], []
    tokens = [np.empty((0, encoder.num_views, encoder.grid.height, encoder.grid.width), np.int32)]
    for start in range(0, len(rows), job.batch_size):
        batch = rows[start : start + job.batch_size].tolist()
        prepared = []
        for row, result in zip(batch, itertools.islice(images, len(batch)), strict=True):
            if isinstance(result, BadImage):
                bad.append(BadEntry(id=str(job.source.ids[row]), reason=str(result)))
            else:
                prepared.append(result)
                good.append(row)
        if prepared:
            tokens.append(encoder.tokens(np.stack(prepared)))
        progress(len(batch))
    captions = job.conditions.wanted.captions
    values: Any = job.source.captions if captions else job.source.labels
    shown, ids = [values[row] for row in good], job.source.ids[good].tolist()
    table = shard_bytes(np.concatenate(tokens), ids, shown, captions, encoder.vocab_size)
    written = write_file(out, f"codes-{shard:05d}.parquet", table)
    described = write_file(out, f"captions-{shard:05d}.safetensors", features(shown)) if features else None
    num_rows = len(good) * encoder.num_views
    return ShardRecord(**written.model_dump(), rows=num_rows, captions=described, bad=tuple(bad))


def write_file(out: Path, name: str, content: bytes) -> FileEntry:
    """Writes a file in the hidden folder first and then moves it to ``out``, where a kill leaves no partial file."""
    with atomic_file(out / WORK / name) as file:
        file.write(content)
    (out / WORK / name).replace(out / name)
    return FileEntry(name=name, sha256=hashlib.sha256(content).hexdigest())
