"""What a decoder is: one way to turn conditions into token grids. The registry is ``decoders.py``.

Letters: B images, N = H*W cells, H grid rows, W grid columns, C cells of a step, V codebook size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flashar_cli.config import ModelConfig, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.base import TokenModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import attention_kernels
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

    @property
    def key(self) -> PlanKey:
        """What it is made for."""

    def load(self, conditions: Conditions, sampling: Sampling, uniform: Tensor) -> None:
        """Copies a batch's inputs into place; ``uniform`` float32 [B, draws], as many as the config says, feeds the
        sampling.
        """

    def run(self, on_step: StepHook | None = None) -> None:
        """Samples all tokens. ``on_step(step, logits)`` gets each step's logits [B, C, V] after guidance and before
        temperature; the prefix predicts those of step 0.
        """

    def tokens(self) -> Tensor:
        """The sampled tokens, a new tensor [B, ..]: token grids int64 [B, H, W], or what the model has instead."""


class StaticPlan(ABC):
    """A plan whose steps are known beforehand. Between ``load`` and ``tokens`` nothing waits for the device, and no
    shape depends on data, so its methods run under CUDA graph capture too.
    """

    model: TokenModel
    key: PlanKey
    num_steps: int

    @abstractmethod
    def load(self, conditions: Conditions, sampling: Sampling, uniform: Tensor) -> None:
        """As in ``Plan``, like ``run`` and ``tokens``."""

    def run(self, on_step: StepHook | None = None) -> None:
        self.sample(0, self.prefix(), on_step)
        self.advance(1, self.num_steps, on_step)

    @abstractmethod
    def prefix(self) -> Tensor:
        """Reads the conditions and predicts step 0: logits [B, C, V] after guidance."""

    @abstractmethod
    def sample(self, step: int, logits_BCV: Tensor, on_step: StepHook | None = None) -> None:
        """Samples the tokens of a step and stores them; ``on_step`` as in ``run``."""

    @abstractmethod
    def advance(self, first: int, last: int, on_step: StepHook | None = None) -> None:
        """Predicts and samples the steps ``first`` .. ``last - 1``, from 1 on; ``on_step`` as in ``run``."""

    @abstractmethod
    def teacher_forced(self, tokens: Tensor) -> Iterator[Tensor]:
        """Each step's logits [B, C, V] after guidance when these tokens, as ``tokens`` returns them, are fed."""

    def logits(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """Logits of all steps [B, .., V], one step after the other in decoding order, when these tokens are fed without
        guidance.
        """
        num_draws = self.model.config.num_draws(self.key.grid)
        self.load(conditions, Sampling(), torch.zeros(len(tokens), num_draws, device=self.key.device))
        with attention_kernels():
            return torch.cat(list(self.teacher_forced(tokens)), dim=1)

    @abstractmethod
    def tokens(self) -> Tensor: ...

    @abstractmethod
    def buffers(self) -> list[Tensor]:
        """Every tensor that ``load`` and decoding write to."""


class Decoder(ABC):
    """One way to sample the tokens of an image. Commands, bench arms, floors and reports need nothing but an object of
    a subclass. ``model`` and ``config`` are of the kind for which ``obstacle`` knows no reason.
    """

    name: str
    baselines: tuple[str, ...] = ()  # decoders of the same models, over which a bench gives its speed-up
    trained = True  # whether models that have this decoder are trained for it
    timed_by_step = False  # whether a bench times each step: where they are few and differ much

    @abstractmethod
    def obstacle(self, config: ModelConfig) -> str | None:
        """Why a model does not have this decoder, in one line; None where it has it."""

    def settings(self, config: Any) -> dict[str, Any]:
        """What else an image follows from, beside sampling: for the files that say how images were made."""
        return {}

    @abstractmethod
    def num_forwards(self, config: Any, grid: Grid) -> int | None:
        """Forwards of one batch, the prefix's own included; None where they depend on the sampled tokens."""

    @abstractmethod
    def token_shape(self, config: Any, grid: Grid) -> tuple[int, ...]:
        """The shape of the tokens of one image."""

    def token_maps(self, config: Any, grid: Grid) -> dict[str, tuple[int, ...]]:
        """The shapes of the maps, by name, that the tokens of an image are, one after the other; none where they are
        one grid.
        """
        return {}

    @abstractmethod
    def check(self, model: Any, conditions: Conditions, grid: Grid) -> None:
        """Raises FlasharError where a grid is not for this decoder, or not after these conditions."""

    @abstractmethod
    def plan(self, model: Any, tokenizer: Any, key: Any) -> Plan:
        """The plan of a key, with every buffer and table that it needs."""

    @abstractmethod
    def key(self, model: Any, conditions: Conditions, sampling: Sampling, grid: Grid | None = None) -> PlanKey:
        """The key of a batch; ``grid`` None: the model's own."""

    def logits(self, model: Any, tokenizer: Any, tokens: Tensor, conditions: Conditions, grid: Grid) -> Tensor:
        """Logits float32 of tokens [B, ..] of this decoder's shape, [B, .., V], when they are fed, without guidance.
        Raises FlasharError where the steps depend on the sampled tokens.
        """
        raise FlasharError(f"the decoder {self.name} has no logits of given tokens: its steps depend on them")

    @abstractmethod
    def costs(self, config: Any, work: Workload) -> list[ForwardCost]:
        """The least that each forward takes; the floor is their sum. Where the number of forwards depends on the
        sampled tokens, these are the fewest possible.
        """

    @abstractmethod
    def image_bytes(self, config: Any, work: Workload, num_caches: int = 1, with_images: bool = True) -> int:
        """An estimate of the memory that each image of a batch takes, with so many caches."""
