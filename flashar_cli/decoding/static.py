"""Decoders whose steps are known beforehand: each step of an order is one forward, on a static plan."""

from __future__ import annotations

from collections.abc import Callable

from flashar_cli.config import RasterConfig
from flashar_cli.decoding.costs import ForwardCost, Workload, forward_costs
from flashar_cli.decoding.decoder import Decoder, PlanKey
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.grid import Grid, Order
from flashar_cli.models.flashar import FlasharModel


class StaticDecoder(Decoder):
    """Decodes a grid in the order that ``order`` gives for a model; ``obstacle`` says why a model can't."""

    def __init__(
        self,
        name: str,
        order: Callable[[RasterConfig, Grid], Order],
        obstacle: Callable[[RasterConfig], str | None] | None = None,
    ) -> None:
        self.name, self.order, self._obstacle = name, order, obstacle

    def obstacle(self, config: RasterConfig) -> str | None:
        return None if self._obstacle is None else self._obstacle(config)

    def num_forwards(self, config: RasterConfig, grid: Grid) -> int:
        return self.order(config, grid).num_steps

    def plan(self, model: FlasharModel, key: PlanKey) -> DecodePlan:
        return DecodePlan(model, key, self.order(model.config, key.grid))

    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        return forward_costs(config, self.order(config, work.grid), work)


def _needs_branch(config: RasterConfig) -> str | None:
    if config.branch is not None:
        return None
    return "this model has no vertical branch; use --decoder raster, or adapt it with `flashar adapt`"


RASTER = StaticDecoder("raster", RasterConfig.raster)
FLASHAR = StaticDecoder("flashar", lambda config, grid: grid.diagonal(), _needs_branch)
