"""What to encode, and everything that the written bytes follow from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.bounds import decimal
from flashar_cli.config import CaptionPrefix
from flashar_cli.data import captions
from flashar_cli.data.augment import Augmentation
from flashar_cli.data.codes import ids_sha256
from flashar_cli.data.records import FORMAT_VERSION, EncodeSettings
from flashar_cli.data.sources.base import PictureSource
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.text import shown
from flashar_cli.tokenizers.vq import VQTokenizer

CENTER = Augmentation()


@dataclass(frozen=True)
class MaxBad:
    """How many bad pictures are too few to stop for: a count, or a percentage of all."""

    text: str

    def __post_init__(self) -> None:
        if not _is_percentage(self.text) and decimal(self.text) is None:
            raise FlasharError(
                f"--max-bad is {shown(self.text)}; expected a count such as 20 or a percentage such as 1%"
            )

    def of(self, num_pictures: int) -> int:
        """The largest number that is accepted."""
        if self.text.endswith("%"):
            return int(num_pictures * float(self.text[:-1]) / 100)
        return int(self.text)


def _is_percentage(text: str) -> bool:
    try:
        return text.endswith("%") and 0 <= float(text.removesuffix("%")) <= 100  # NaN fails both
    except ValueError:
        return False


ONE_PERCENT = MaxBad("1%")


@dataclass(frozen=True)
class EncodeJob:
    """What to encode: ``rows`` of ``source``, ascending. ``data`` is how the user named it; ``seed`` chose the rows
    where they are a subset, else None; ``caption_prefix`` is what caption features must fit, None for classes.
    """

    source: PictureSource
    data: str
    rows: NDArray[np.int64]
    seed: int | None
    tokenizer: VQTokenizer
    grid: Grid
    caption_prefix: CaptionPrefix | None = None
    augmentation: Augmentation = CENTER
    batch_size: int = 64
    shard_size: int = 1024
    dtype: torch.dtype = torch.float32
    max_bad: MaxBad = ONE_PERCENT
    workers: int = 4

    @property
    def num_shards(self) -> int:
        return -(-len(self.rows) // self.shard_size)

    def shard_rows(self, shard: int) -> NDArray[np.int64]:
        """The rows of one shard."""
        return self.rows[shard * self.shard_size : (shard + 1) * self.shard_size]

    @cached_property
    def settings(self) -> EncodeSettings:
        """Everything that the written bytes follow from."""
        prefix = self.caption_prefix
        features = prefix and {"text_encoder": captions.TEXT_ENCODER} | prefix.model_dump(exclude={"kind"})
        chosen = {"size": len(self.rows), "seed": self.seed, "ids_sha256": ids_sha256(self.source.ids[self.rows])}
        return EncodeSettings.model_validate(
            {
                "format_version": FORMAT_VERSION,
                "grid": (self.grid.height, self.grid.width),
                "vocab_size": self.tokenizer.config.codebook_size,
                "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
                "source_fingerprint": self.source.fingerprint,
                "subset": chosen,
                "augmentation": self.augmentation.describe(),
                "captions": features,
                "dtype": str(self.dtype).removeprefix("torch."),
                "batch_size": self.batch_size,
                "shard_size": self.shard_size,
            }
        )

    def key(self) -> str:
        """A name for these codes: the same job always has the same, another job another."""
        return hashlib.sha256(json.dumps(self.settings.document(), sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_sha256(tokenizer: VQTokenizer) -> str:
    """SHA-256 of a tokenizer's weights in float32, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
