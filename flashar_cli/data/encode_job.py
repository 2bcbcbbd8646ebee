"""What to encode, and the settings that determine the written bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.data.augment import Augmentation
from flashar_cli.data.conditions import ConditionKind
from flashar_cli.data.options import MaxBad
from flashar_cli.data.records import FORMAT_VERSION, EncodeSettings
from flashar_cli.data.sources.base import ImageSource
from flashar_cli.data.tokens import ids_sha256
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import ImageTokenizer


@dataclass(frozen=True)
class EncodeJob:
    """``rows`` of ``source`` to encode, ascending. ``data`` is the user's name for the source; ``seed`` chose the rows,
    None where all are taken; ``conditions`` are those of the model that will read the tokens.
    """

    source: ImageSource
    data: str
    rows: NDArray[np.int64]
    seed: int | None
    tokenizer: ImageTokenizer
    grid: Grid
    conditions: ConditionKind
    augmentation: Augmentation
    batch_size: int
    shard_size: int
    dtype: torch.dtype
    max_bad: MaxBad
    workers: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.rows) // self.shard_size)

    def shard_rows(self, shard: int) -> NDArray[np.int64]:
        """The rows of one shard."""
        return self.rows[shard * self.shard_size : (shard + 1) * self.shard_size]

    @cached_property
    def settings(self) -> EncodeSettings:
        """Everything that determines the written bytes."""
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
                "captions": self.conditions.features(),
                "dtype": str(self.dtype).removeprefix("torch."),
                "batch_size": self.batch_size,
                "shard_size": self.shard_size,
            }
        )

    def document(self) -> dict[str, Any]:
        """The JSON of ``--dry-run``."""
        most_bad = self.max_bad.of(len(self.rows))
        return {"data": self.data, **self.settings.document(), "shards": self.num_shards, "max_bad": most_bad}

    def key(self) -> str:
        """A name for these tokens, which follows from ``settings`` alone."""
        return hashlib.sha256(json.dumps(self.settings.document(), sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_sha256(tokenizer: ImageTokenizer) -> str:
    """SHA-256 of a tokenizer's weights in float32, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
