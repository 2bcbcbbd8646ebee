"""One shard: pictures to views, views to codes, codes and captions to files.

Letters: n pictures of a shard, A views, H grid rows, W grid columns; h, w pixels.
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

from flashar_cli.data import captions
from flashar_cli.data.augment import Augmentation
from flashar_cli.data.decode import BadPicture, decode
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.features import feature_bytes
from flashar_cli.data.records import BadEntry, FileEntry, ShardRecord
from flashar_cli.data.shards import shard_bytes
from flashar_cli.data.sources.base import Fetch
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file
from flashar_cli.tokenizers.pixels import from_uint8

WORK = ".encoding"  # the hidden folder inside --out

Progress = Callable[[int], None]


def views_or_bad(augmentation: Augmentation, height: int, width: int, fetch: Fetch) -> NDArray[np.uint8] | BadPicture:
    """The views uint8 [A, h, w, 3] of a picture yet to be read, or why there are none."""
    try:
        return augmentation.views(decode(fetch()), height, width)
    except BadPicture as error:
        return error
    except FlasharError as error:
        return BadPicture(str(error))
    except OSError as error:
        return BadPicture(error.strerror or str(error))


def encode_shard(
    job: EncodeJob,
    out: Path,
    shard: int,
    pictures: Iterator[NDArray[np.uint8] | BadPicture],
    captioner: captions.CaptionEncoder | None,
    progress: Progress,
) -> ShardRecord:
    """Writes one shard; returns what the manifest will say of it, and its bad pictures."""
    rows, good, bad = job.shard_rows(shard), [], []
    codes = [np.empty((0, job.augmentation.num_views, job.grid.height, job.grid.width), np.int32)]
    for start in range(0, len(rows), job.batch_size):
        batch = rows[start : start + job.batch_size].tolist()
        views = []
        for row, result in zip(batch, itertools.islice(pictures, len(batch)), strict=True):
            if isinstance(result, BadPicture):
                bad.append(BadEntry(id=str(job.source.ids[row]), reason=str(result)))
            else:
                views.append(result)
                good.append(row)
        if views:
            codes.append(_codes(job, np.stack(views)))
        progress(len(batch))
    text: Any = job.source.labels if captioner is None else job.source.captions
    shown, ids = [text[row] for row in good], job.source.ids[good].tolist()
    table = shard_bytes(np.concatenate(codes), ids, shown, captioner is not None, job.tokenizer.config.codebook_size)
    written = write_file(out, f"codes-{shard:05d}.parquet", table)
    described = None
    if captioner is not None:
        described = write_file(out, f"captions-{shard:05d}.safetensors", _features(job, captioner, shown))
    return ShardRecord(
        name=written.name,
        sha256=written.sha256,
        rows=len(good) * job.augmentation.num_views,
        captions=described,
        bad=tuple(bad),
    )


def _features(job: EncodeJob, captioner: captions.CaptionEncoder, texts: list[str]) -> bytes:
    """The feature file of a shard's captions. Raises FlasharError where the text encoder doesn't fit the model."""
    prefix = job.caption_prefix
    assert prefix is not None
    empty = torch.zeros(0, prefix.length, prefix.feature_dim, dtype=torch.bfloat16)
    parts = [(empty, empty[:, :, 0])]
    for start in range(0, len(texts), job.batch_size):
        parts.append(captioner(texts[start : start + job.batch_size], prefix.length))
        feature_dim = parts[-1][0].shape[2]
        if feature_dim != prefix.feature_dim:
            raise FlasharError(
                f"the text encoder gives {feature_dim} values a token; this model reads {prefix.feature_dim}"
            )
    return feature_bytes(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


@torch.inference_mode()
def _codes(job: EncodeJob, views: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Codes [n, A, H, W] of uint8 [n, A, h, w, 3], at most ``batch_size`` views a forward."""
    tokenizer, codes = job.tokenizer, []
    device = next(tokenizer.parameters()).device
    flat = views.reshape(-1, *views.shape[2:])
    for start in range(0, len(flat), job.batch_size):
        images = from_uint8(flat[start : start + job.batch_size]).to(device)
        with torch.autocast(device.type, job.dtype, enabled=job.dtype != torch.float32):
            latent = tokenizer.latent(images)
        # The search for the nearest code stays in float32.
        codes.append(tokenizer.quantize.nearest(latent.float()).to(torch.int32).cpu().numpy())
    return np.concatenate(codes).reshape(*views.shape[:2], job.grid.height, job.grid.width)


def write_file(out: Path, name: str, content: bytes) -> FileEntry:
    """Writes a file of ``out`` by way of the hidden folder, so that a kill leaves nothing beside the shards."""
    with atomic_file(out / WORK / name) as file:
        file.write(content)
    (out / WORK / name).replace(out / name)
    return FileEntry(name=name, sha256=hashlib.sha256(content).hexdigest())
