"""From ``--data`` to tokens that fit a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flashar_cli.checkpoints import hub
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.data.augment import CENTER, Augmentation
from flashar_cli.data.conditions import conditions_of
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.encode_shard import Progress
from flashar_cli.data.encoders import ImageEncoder, StoredTokens, tokenizer_sha256
from flashar_cli.data.encoding import count_missing, encode, wait_for_manifest
from flashar_cli.data.options import EncodeOptions, MaxBad
from flashar_cli.data.records import OldManifest, read_manifest
from flashar_cli.data.shards import is_shards, read_shards
from flashar_cli.data.sources.base import refuse_columns
from flashar_cli.data.sources.open import open_images
from flashar_cli.data.tokens import TokenSet, choose_rows
from flashar_cli.errors import FlasharError
from flashar_cli.machine.memory import require_memory
from flashar_cli.machine.world import current_world

DEFAULTS = EncodeOptions()
MOST_WORKERS = 16  # threads that decode images


@dataclass(frozen=True)
class DataPlan:
    """The images of a run, chosen and checked but not encoded yet. ``tokens`` encodes or reads them; ``note`` says in
    one line which of the two it will do.
    """

    num_images: int
    note: str
    tokens: Callable[[Progress], TokenSet]


def plan_tokens(
    loaded: Loaded, data: str, subset: int | None, seed: int, options: EncodeOptions = DEFAULTS
) -> DataPlan:
    """Opens ``data`` and chooses ``subset`` images, as ``choose_rows``. The tokens of images are kept in the cache for
    other runs; token shards are only read. Raises FlasharError where data and model don't fit.
    """
    config, path = loaded.config, Path(data).expanduser()
    conditions = conditions_of(config, loaded.text_tokenizer)
    conditions.check_ready()

    def read(folder: Path, sha256: str | None) -> TokenSet:
        return read_shards(folder, config.order_grid, config.backbone.vocab_size, sha256, conditions)

    if path.is_dir() and is_shards(path):
        _check_options(path, options)
        stored = read(path, None if loaded.tokenizer is None else tokenizer_sha256(loaded.tokenizer))
        chosen = stored.take(choose_rows(stored.ids, stored.subjects.labels, subset, seed))
        conditions.check_labels(chosen.subjects.labels, data)
        return DataPlan(len(chosen), f"{data} holds token shards", lambda progress: chosen)
    job = plan_encoding(loaded, data, subset, seed, options)
    cache = hub.cache_dir() / "codes" / job.key()
    missing = count_missing(job, cache)
    note = f"{len(job.rows)} images of {data}: " + (
        f"encoding {missing} into {cache}" if missing else f"their tokens are in {cache}"
    )

    def tokens(progress: Progress) -> TokenSet:
        encode(job, cache, current_world(), progress=progress)
        wait_for_manifest(job, cache)
        made = read(cache, job.settings.tokenizer_sha256)
        return made.take(choose_rows(made.ids, made.subjects.labels, None, seed))

    return DataPlan(len(job.rows), note, tokens)


def plan_encoding(loaded: Loaded, data: str, subset: int | None, seed: int, options: EncodeOptions) -> EncodeJob:
    """Opens a source of images and chooses ``subset`` of them, as ``choose_rows``. Raises FlasharError."""
    config, settings = loaded.config, options.data
    augmentation, max_bad = Augmentation(settings.augment, settings.crop_ratio), MaxBad(settings.max_bad)
    conditions = conditions_of(config, loaded.text_tokenizer)
    source = open_images(data, conditions.wanted, settings)
    rows = np.sort(choose_rows(source.ids, source.labels, subset, seed))
    conditions.check_labels(None if source.labels is None else source.labels[rows], data)
    if source.holds_tokens and augmentation != CENTER:
        raise FlasharError(f"--data {data} holds tokens, of which {augmentation.name} can't be cut; leave it out")
    stored = StoredTokens(config.order_grid, config.backbone.vocab_size) if source.holds_tokens else None
    return EncodeJob(
        source=source,
        data=data,
        rows=rows,
        seed=seed if len(rows) < len(source.ids) else None,
        encoder=stored or _image_encoder(loaded, data, len(rows), augmentation, options),
        conditions=conditions,
        device=options.device or loaded.model.device,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        max_bad=max_bad,
        workers=options.workers or max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // current_world().size)),
    )


def _image_encoder(
    loaded: Loaded, data: str, num_images: int, augmentation: Augmentation, options: EncodeOptions
) -> ImageEncoder:
    """Raises FlasharError where the model has no tokenizer, or memory is too small for a batch."""
    if loaded.tokenizer is None:
        raise FlasharError(f"--data {data} holds images, but the model has no tokenizer; pass token shards")
    grid, batch_size = loaded.config.order_grid, min(options.batch_size, max(1, num_images))
    needed = batch_size * loaded.config.image_bytes(grid)
    require_memory(f"a batch of {batch_size} images (--batch-size)", needed)
    return ImageEncoder(loaded.tokenizer, grid, augmentation, options.batch_size, options.dtype or torch.float32)


def _check_options(shards: Path, options: EncodeOptions) -> None:
    """Raises FlasharError where the options ask for other views than the shards have, or name columns."""
    settings = options.data
    wanted = Augmentation(settings.augment, settings.crop_ratio)
    MaxBad(settings.max_bad)
    refuse_columns(settings, str(shards), "a folder of token shards")
    manifest = read_manifest(shards)
    made = CENTER.describe()
    if not isinstance(manifest, OldManifest):
        made = manifest.augmentation.model_dump(exclude_unset=True)
    if wanted != CENTER and made != wanted.describe():
        raise FlasharError(
            f"--data {shards} was encoded with augmentation {made['name']}, the recipe says {wanted.name}; "
            "encode again, or leave data.augment out"
        )
