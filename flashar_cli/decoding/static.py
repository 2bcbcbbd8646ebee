"""Decoders of raster models: each step of an order is one forward, on a static plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from flashar_cli.config import ModelConfig, RasterConfig, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload, forward_costs
from flashar_cli.decoding.decoder import Decoder, PlanKey
from flashar_cli.decoding.memory import decoding_bytes
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.grid import Grid, Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingKind


class RasterDecoder(Decoder):
    """What decoders of raster models share."""

    baselines = ("raster",)

    def obstacle(self, config: ModelConfig) -> str | None:
        if isinstance(config, RasterConfig):
            return None
        return f"--decoder {self.name} takes one token after the other; this model predicts whole maps"

    def token_shape(self, config: RasterConfig, grid: Grid) -> tuple[int, ...]:
        return grid.height, grid.width

    def check(self, model: FlasharModel, conditions: Conditions, grid: Grid) -> None:
        model.config.check_positions(grid, model.prefix.length(conditions))

    def key(self, model: FlasharModel, conditions: Conditions, sampling: Sampling, grid: Grid | None = None) -> PlanKey:
        return PlanKey(
            decoder=self.name,
            batch=len(conditions),
            grid=grid or model.config.order_grid,
            prefix_length=model.prefix.length(conditions),
            kind=SamplingKind.of(sampling),
            dtype=model.dtype,
            device=model.device,
        )

    def image_bytes(self, config: RasterConfig, work: Workload, num_caches: int = 1, with_images: bool = True) -> int:
        return decoding_bytes(config, work, self.longest_step(config, work.grid), num_caches, with_images)

    @abstractmethod
    def longest_step(self, config: RasterConfig, grid: Grid) -> int:
        """The most cells of an image that a step predicts."""


class StaticDecoder(RasterDecoder):
    """Decodes a grid in the order that ``order`` gives for a model; ``why_not`` says why a raster model can't."""

    def __init__(
        self,
        name: str,
        order: Callable[[RasterConfig, Grid], Order],
        why_not: Callable[[RasterConfig], str | None] = lambda config: None,
        trained: bool = True,
    ) -> None:
        self.name, self.order, self._why_not, self.trained = name, order, why_not, trained

    def obstacle(self, config: ModelConfig) -> str | None:
        return self._why_not(config) if isinstance(config, RasterConfig) else super().obstacle(config)

    def num_forwards(self, config: RasterConfig, grid: Grid) -> int:
        return self.order(config, grid).num_steps

    def longest_step(self, config: RasterConfig, grid: Grid) -> int:
        return max(map(len, self.order(config, grid).steps))

    def plan(self, model: FlasharModel, tokenizer: object, key: PlanKey) -> DecodePlan:
        return DecodePlan(model, key, self.order(model.config, key.grid))

    def logits(
        self, model: FlasharModel, tokenizer: object, tokens: Tensor, conditions: Conditions, grid: Grid
    ) -> Tensor:
        order = self.order(model.config, grid)
        if order.fillers:  # known step by step alone
            plan = self.plan(model, tokenizer, self.key(model, conditions, Sampling(), grid))
            logits_BNV = plan.logits(tokens, conditions)
        else:
            logits_BNV = model(order.from_raster(tokens), conditions, order).logits
        return order.to_raster(logits_BNV, trailing=1)

    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        return forward_costs(config, self.order(config, work.grid), work)


def _needs_branch(config: RasterConfig) -> str | None:
    if config.branch is not None:
        return None
    return "this model has no vertical branch; use --decoder raster, or adapt it with `flashar adapt`"


def no_line_ends(config: RasterConfig) -> str | None:
    """Why a raster model can't be decoded in other orders, if it can't."""
    if not config.raster(config.order_grid).line_ends:
        return None
    return "this model ends each row with a token of its own, which orders of other decoders than raster don't have"


RASTER = StaticDecoder("raster", RasterConfig.raster)
FLASHAR = StaticDecoder("flashar", lambda config, grid: grid.diagonal(), _needs_branch)
# Training-free: the horizontal head of a raster model, in orders that it was not trained in.
NAIVE = StaticDecoder("naive", lambda config, grid: grid.naive(), no_line_ends, trained=False)


def zipar(window: int) -> StaticDecoder:
    """ZipAR with this window."""
    return StaticDecoder(f"zipar:{window}", lambda config, grid: grid.zipped(window), no_line_ends, trained=False)
