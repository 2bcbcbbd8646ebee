"""From ``--data`` to codes that fit a model.

Letters: M pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli import hub
from flashar_cli.checkpoint import Loaded
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.data.augment import Augmentation
from flashar_cli.data.codes import CodeSet, choose_rows
from flashar_cli.data.encode_job import CENTER, ONE_PERCENT, EncodeJob, MaxBad, tokenizer_sha256
from flashar_cli.data.encode_shard import Progress
from flashar_cli.data.encoding import count_missing, encode, wait_for_manifest
from flashar_cli.data.records import OldManifest, read_manifest
from flashar_cli.data.shards import is_shards, read_shards
from flashar_cli.data.sources.base import Columns, Wanted
from flashar_cli.data.sources.open import open_pictures
from flashar_cli.errors import FlasharError
from flashar_cli.machine import require_memory
from flashar_cli.models.sizes import picture_bytes
from flashar_cli.world import current_world

NAMES = Columns()
MOST_WORKERS = 16  # threads that decode pictures


@dataclass(frozen=True)
class EncodeOptions:
    """How pictures are found, cut and encoded; the defaults are those of `flashar encode`."""

    columns: Columns = NAMES
    augmentation: Augmentation = CENTER
    batch_size: int = 64
    shard_size: int = 1024
    dtype: torch.dtype = torch.float32
    max_bad: MaxBad = ONE_PERCENT
    workers: int | None = None


@dataclass(frozen=True)
class DataPlan:
    """Which pictures a run will use, chosen and checked, none of them encoded yet. ``codes`` encodes or reads them;
    ``note`` says in one line which of the two it will be.
    """

    num_images: int
    note: str
    codes: Callable[[Progress], CodeSet]


def plan_codes(
    loaded: Loaded, data: str, subset: int | None, seed: int, options: EncodeOptions | None = None
) -> DataPlan:
    """Opens ``data`` and chooses ``subset`` pictures (all for None), class by class as equally as possible, shuffled by
    the seed.

    Pictures are encoded once, in float32, and kept in the cache, by tokenizer and source; code shards are read as they
    are. Raises FlasharError where data and model don't fit.
    """
    config, path = loaded.config, Path(data).expanduser()
    options = options or EncodeOptions()
    prefix = None if isinstance(config.prefix, ClassPrefix) else config.prefix
    if path.is_dir() and is_shards(path):
        _check_options(path, options)
        sha256 = None if loaded.tokenizer is None else tokenizer_sha256(loaded.tokenizer)
        stored = read_shards(path, config.order_grid, config.backbone.vocab_size, sha256, prefix)
        rows = choose_rows(stored.ids, stored.labels, subset, seed)
        _check_labels(stored.labels, rows, config, data)
        return DataPlan(len(rows), f"{data} holds code shards", lambda progress: stored.take(rows))
    job = plan_encoding(loaded, data, subset, seed, options)
    cache = hub.cache_dir() / "codes" / job.key()
    missing = count_missing(job, cache)
    note = f"{len(job.rows)} pictures of {data}: " + (
        f"encoding {missing} into {cache}" if missing else f"their codes are in {cache}"
    )

    def codes(progress: Progress) -> CodeSet:
        encode(job, cache, current_world(), progress=progress)
        wait_for_manifest(job, cache)
        sha256 = job.settings.tokenizer_sha256
        data = read_shards(cache, job.grid, config.backbone.vocab_size, sha256, prefix)
        return data.take(choose_rows(data.ids, data.labels, None, seed))

    return DataPlan(len(job.rows), note, codes)


def plan_encoding(loaded: Loaded, data: str, subset: int | None, seed: int, options: EncodeOptions) -> EncodeJob:
    """Opens a source of pictures and chooses ``subset`` of them, all for None. Raises FlasharError."""
    config = loaded.config
    if loaded.tokenizer is None:
        raise FlasharError(f"--data {data} holds pictures, but the model has no tokenizer; pass code shards")
    classes = config.prefix if isinstance(config.prefix, ClassPrefix) else None
    wanted = Wanted(classes.num_classes if classes else None, config.class_names)
    source = open_pictures(data, wanted, options.columns)
    rows = np.sort(choose_rows(source.ids, source.labels, subset, seed))
    _check_labels(source.labels, rows, config, data)
    batch_size = min(options.batch_size, max(1, len(rows)))
    each = picture_bytes(config, config.order_grid)
    require_memory(f"a batch of {batch_size} pictures (--batch-size)", batch_size * each)
    return EncodeJob(
        source=source,
        data=data,
        rows=rows,
        seed=seed if len(rows) < len(source.ids) else None,
        tokenizer=loaded.tokenizer,
        grid=config.order_grid,
        caption_prefix=None if isinstance(config.prefix, ClassPrefix) else config.prefix,
        augmentation=options.augmentation,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        dtype=options.dtype,
        max_bad=options.max_bad,
        workers=options.workers or _default_workers(),
    )


def _check_options(shards: Path, options: EncodeOptions) -> None:
    """Raises FlasharError where pictures were to be cut or found otherwise than the shards were made."""
    options.columns.refuse(str(shards), "a folder of code shards")
    manifest = read_manifest(shards)
    made = CENTER.describe()
    if not isinstance(manifest, OldManifest):
        made = manifest.augmentation.model_dump(exclude_unset=True)
    if options.augmentation != CENTER and made != options.augmentation.describe():
        raise FlasharError(
            f"--data {shards} was encoded with augmentation {made['name']}, the recipe says "
            f"{options.augmentation.name}; encode again, or leave data.augment out"
        )


def _default_workers() -> int:
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // current_world().size))


def _check_labels(labels: NDArray[np.int64] | None, rows: NDArray[np.int64], config: ModelConfig, name: str) -> None:
    if labels is None or not isinstance(config.prefix, ClassPrefix) or not len(rows):
        return
    lowest, highest = labels[rows].min(), labels[rows].max()
    if lowest < 0 or highest >= config.prefix.num_classes:
        raise FlasharError(
            f"--data {name} has labels {lowest}..{highest}; this model knows 0..{config.prefix.num_classes - 1}"
        )
