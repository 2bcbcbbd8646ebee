"""What a decoder is: one way to turn conditions into token grids. The registry is ``decoders.py``.

Letters: B images, N = H*W cells, H grid rows, W grid columns, C cells of a step, V codebook size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingKind

StepHook = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class PlanKey:
    """Everything that the shapes and operations of a decode depend on. Batches with the same key can share a plan."""

    decoder: str
    batch: int
    grid: Grid
    prefix_length: int
    kind: SamplingKind
    dtype: torch.dtype
    device: torch.device


class Plan(Protocol):
    """The buffers for one batch: inputs are copied in, tokens are sampled in place and then read."""

    key: PlanKey

    def load(self, conditions: Conditions, sampling: Sampling, uniform_BN: Tensor) -> None:
        """Copies a batch's inputs into place; ``uniform_BN`` float32 [B, N] in raster order feeds the sampling."""

    def run(self, on_step: StepHook | None = None) -> None:
        """Samples all tokens. ``on_step(step, logits)`` gets each step's logits [B, C, V] after guidance and before
        temperature; the prefix predicts those of step 0.
        """

    def tokens(self) -> Tensor:
        """The sampled tokens, a new int64 [B, H, W]."""


class Decoder(ABC):
    """One way to sample a token grid. Commands, bench arms, floors and reports need nothing but an object of a subclass
    in the registry.
    """

    name: str

    def obstacle(self, config: RasterConfig) -> str | None:
        """Why a model does not have this decoder, in one line; None where it has it."""
        return None

    @abstractmethod
    def num_forwards(self, config: RasterConfig, grid: Grid) -> int | None:
        """Forwards of one batch, the prefix's own included; None where they depend on the sampled tokens."""

    @abstractmethod
    def plan(self, model: FlasharModel, key: PlanKey) -> Plan:
        """The plan of a key, with every buffer and table that it needs."""

    @abstractmethod
    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        """The least that each forward takes; the floor is their sum. Where the number of forwards depends on the
        sampled tokens, these are the fewest possible.
        """

    def key(self, model: FlasharModel, conditions: Conditions, sampling: Sampling, grid: Grid | None = None) -> PlanKey:
        """The key of a batch; ``grid`` None: the model's own."""
        return PlanKey(
            decoder=self.name,
            batch=len(conditions),
            grid=grid or model.config.order_grid,
            prefix_length=model.prefix.length(conditions),
            kind=SamplingKind.of(sampling),
            dtype=model.dtype,
            device=model.device,
        )
