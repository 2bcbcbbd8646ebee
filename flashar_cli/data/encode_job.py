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

from flashar_cli.data.conditions import ConditionKind
from flashar_cli.data.encoders import Encoder
from flashar_cli.data.options import MaxBad
from flashar_cli.data.records import FORMAT_VERSION, EncodeSettings
from flashar_cli.data.sources.base import ImageSource
from flashar_cli.data.tokens import ids_sha256


@dataclass(frozen=True)
class EncodeJob:
    """``rows`` of ``source`` to encode, ascending. ``data`` is the user's name for the source; ``seed`` chose the rows,
    None where all are taken; ``conditions`` are those of the model that will read the tokens, and their features are
    made on ``device``.
    """

    source: ImageSource
    data: str
    rows: NDArray[np.int64]
    seed: int | None
    encoder: Encoder
    conditions: ConditionKind
    device: torch.device
    batch_size: int
    shard_size: int
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
                "grid": (self.encoder.grid.height, self.encoder.grid.width),
                "vocab_size": self.encoder.vocab_size,
                **self.encoder.settings(),
                "source_fingerprint": self.source.fingerprint,
                "subset": chosen,
                "captions": self.conditions.features(),
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
