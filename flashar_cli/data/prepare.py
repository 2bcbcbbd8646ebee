"""From ``--data`` to codes that fit a model.

Letters: M pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli import hub
from flashar_cli.checkpoint import Loaded
from flashar_cli.config import ClassPrefix
from flashar_cli.data.codes import CodeSet, choose_rows
from flashar_cli.data.shards import is_shards, read_shards
from flashar_cli.data.sources import PictureSource, center_crop, open_pictures
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file
from flashar_cli.tokenizers.pixels import from_uint8
from flashar_cli.tokenizers.vq import VQTokenizer

ENCODE_BATCH = 64
Progress = Callable[[int], None]


@dataclass(frozen=True)
class DataPlan:
    """Which pictures a run will use, chosen and checked, none of them encoded yet. ``codes`` encodes or reads them."""

    num_images: int
    codes: Callable[[Progress], CodeSet]


def plan_codes(loaded: Loaded, data: str, subset: int | None, seed: int) -> DataPlan:
    """Opens ``data`` and chooses ``subset`` pictures (all for None), class by class as equally as possible, shuffled by
    the seed.

    Pictures are encoded once and kept in the cache, by tokenizer and source; code shards are read as they are. Raises
    FlasharError where data and model don't fit.
    """
    config = loaded.config
    if not isinstance(config.prefix, ClassPrefix):
        raise FlasharError("this model is caption-conditional; probing and adapting need a class-conditional one")
    num_classes, grid = config.prefix.num_classes, config.order_grid
    path = Path(data)
    if path.is_dir() and is_shards(path):
        wanted = None if loaded.tokenizer is None else tokenizer_sha256(loaded.tokenizer)
        stored = read_shards(path, grid, config.backbone.vocab_size, wanted)
        assert stored.labels is not None
        rows = choose_rows(stored.ids, stored.labels, subset, seed)
        _check_labels(stored.labels[rows], num_classes, data)
        return DataPlan(len(rows), lambda progress: stored.take(rows))
    if loaded.tokenizer is None:
        raise FlasharError(f"--data {data} holds pictures, but the model has no tokenizer; pass code shards")
    tokenizer, source = loaded.tokenizer, open_pictures(data, num_classes, config.class_names)
    rows = choose_rows(source.ids, source.labels, subset, seed)
    _check_labels(source.labels[rows], num_classes, data)
    return DataPlan(len(rows), lambda progress: _encoded(source, rows, tokenizer, (grid.height, grid.width), progress))


def tokenizer_sha256(tokenizer: VQTokenizer) -> str:
    """SHA-256 of a tokenizer's weights in float32, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def encode(
    source: PictureSource, rows: NDArray[np.int64], tokenizer: VQTokenizer, grid: tuple[int, int], progress: Progress
) -> NDArray[np.int32]:
    """Codes int32 [M, H, W] of some pictures, cropped to the grid's size."""
    height, width = (side * tokenizer.config.downsample for side in grid)
    device = next(tokenizer.parameters()).device

    def batches() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(rows), ENCODE_BATCH):
            chosen = rows[start : start + ENCODE_BATCH].tolist()
            yield np.stack([center_crop(source.picture(row), height, width) for row in chosen])

    codes = []
    for pictures in batches():
        codes.append(tokenizer.encode(from_uint8(pictures).to(device)).cpu().numpy().astype(np.int32))
        progress(len(pictures))
    return np.concatenate(codes)


def _encoded(
    source: PictureSource, rows: NDArray[np.int64], tokenizer: VQTokenizer, grid: tuple[int, int], progress: Progress
) -> CodeSet:
    ids, labels = source.ids[rows], source.labels[rows]
    key = hashlib.sha256(
        "\n".join([tokenizer_sha256(tokenizer), source.fingerprint, f"{grid[0]}x{grid[1]}", *ids.tolist()]).encode()
    ).hexdigest()
    cache = hub.cache_dir() / "codes" / f"{key[:32]}.npz"
    if cache.exists():
        return CodeSet(codes=np.load(cache)["codes"].astype(np.int32), ids=ids, labels=labels)
    codes = encode(source, rows, tokenizer, grid, progress)
    with atomic_file(cache) as file:
        np.savez_compressed(file, codes=codes)
    return CodeSet(codes=codes, ids=ids, labels=labels)


def _check_labels(labels: NDArray[np.int64], num_classes: int, name: str) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise FlasharError(
            f"--data {name} has labels {labels.min()}..{labels.max()}; this model knows 0..{num_classes - 1}"
        )
