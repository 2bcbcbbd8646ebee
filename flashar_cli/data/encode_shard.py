"""One shard: images to views, views to tokens, tokens and captions to files.

Letters: n images of a shard, A views, H grid rows, W grid columns; h, w pixels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.data.augment import Augmentation
from flashar_cli.data.conditions.base import FeatureWriter
from flashar_cli.data.decode import BadImage, decode
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.records import BadEntry, FileEntry, ShardRecord
from flashar_cli.data.shards import shard_bytes
from flashar_cli.data.sources.base import Fetch
from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file
from flashar_cli.tokenizers.pixels import from_uint8

WORK = ".encoding"  # the hidden folder inside --out

Progress = Callable[[int], None]


def views_or_bad(augmentation: Augmentation, height: int, width: int, fetch: Fetch) -> NDArray[np.uint8] | BadImage:
    """Fetches an image; returns its views uint8 [A, h, w, 3], or why it can't be read."""
    try:
        return augmentation.views(decode(fetch()), height, width)
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
    images: Iterator[NDArray[np.uint8] | BadImage],
    features: FeatureWriter | None,
    progress: Progress,
) -> ShardRecord:
    """Writes one shard; returns its entry in the manifest and its bad images."""
    rows, good, bad = job.shard_rows(shard), [], []
    tokens = [np.empty((0, job.augmentation.num_views, job.grid.height, job.grid.width), np.int32)]
    for start in range(0, len(rows), job.batch_size):
        batch = rows[start : start + job.batch_size].tolist()
        views = []
        for row, result in zip(batch, itertools.islice(images, len(batch)), strict=True):
            if isinstance(result, BadImage):
                bad.append(BadEntry(id=str(job.source.ids[row]), reason=str(result)))
            else:
                views.append(result)
                good.append(row)
        if views:
            tokens.append(_tokens(job, np.stack(views)))
        progress(len(batch))
    captions = job.conditions.wanted.captions
    values: Any = job.source.captions if captions else job.source.labels
    shown, ids = [values[row] for row in good], job.source.ids[good].tolist()
    table = shard_bytes(np.concatenate(tokens), ids, shown, captions, job.tokenizer.config.codebook_size)
    written = write_file(out, f"codes-{shard:05d}.parquet", table)
    described = write_file(out, f"captions-{shard:05d}.safetensors", features(shown)) if features else None
    num_rows = len(good) * job.augmentation.num_views
    return ShardRecord(**written.model_dump(), rows=num_rows, captions=described, bad=tuple(bad))


@torch.inference_mode()
def _tokens(job: EncodeJob, views: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Tokens [n, A, H, W] of uint8 [n, A, h, w, 3], at most ``batch_size`` views a forward."""
    tokenizer, tokens = job.tokenizer, []
    flat = views.reshape(-1, *views.shape[2:])
    for start in range(0, len(flat), job.batch_size):
        images = from_uint8(flat[start : start + job.batch_size]).to(tokenizer.device)
        tokens.append(tokenizer.encode(images, job.dtype).to(torch.int32).cpu().numpy())
    return np.concatenate(tokens).reshape(*views.shape[:2], job.grid.height, job.grid.width)


def write_file(out: Path, name: str, content: bytes) -> FileEntry:
    """Writes a file in the hidden folder first and then moves it to ``out``, where a kill leaves no partial file."""
    with atomic_file(out / WORK / name) as file:
        file.write(content)
    (out / WORK / name).replace(out / name)
    return FileEntry(name=name, sha256=hashlib.sha256(content).hexdigest())
