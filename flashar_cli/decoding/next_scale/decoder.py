"""Decoders of next-scale models: a forward a scale, on a static plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from flashar_cli.config import ModelConfig, NextScaleConfig, Pruning, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.next_scale.costs import scale_bytes, scale_costs
from flashar_cli.decoding.next_scale.plan import ScaleKey, ScalePlan
from flashar_cli.grid import Grid
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions


class ScaleDecoder(Decoder):
    """Decodes as ``pruning`` says for a model; ``why_not`` says why a next-scale model can't."""

    timed_by_step = True

    def __init__(
        self,
        name: str,
        pruning: Callable[[NextScaleConfig], Pruning],
        why_not: Callable[[NextScaleConfig], str | None] = lambda config: None,
        baselines: tuple[str, ...] = (),
    ) -> None:
        self.name, self.pruning, self._why_not, self.baselines = name, pruning, why_not, baselines

    def obstacle(self, config: ModelConfig) -> str | None:
        if not isinstance(config, NextScaleConfig):
            return f"--decoder {self.name} predicts whole maps; this model takes one token after the other"
        return self._why_not(config)

    def settings(self, config: NextScaleConfig) -> dict[str, Any]:
        pruning = self.pruning(config)
        return {} if pruning == Pruning() else {"fastvar": pruning.model_dump(mode="json")}

    def num_forwards(self, config: NextScaleConfig, grid: Grid) -> int:
        return self.pruning(config).num_decoded(len(config.scales(grid)))

    def token_shape(self, config: NextScaleConfig, grid: Grid) -> tuple[int, ...]:
        return sum(scale.num_cells for scale in self._decoded(config, grid)), *config.token_shape

    def token_maps(self, config: NextScaleConfig, grid: Grid) -> dict[str, tuple[int, ...]]:
        return {
            f"scale_{index}": (scale.height, scale.width, *config.token_shape)
            for index, scale in enumerate(self._decoded(config, grid))
        }

    def check(self, model: NextScaleModel, conditions: Conditions, grid: Grid) -> None:
        model.config.scales(grid)

    def plan(self, model: NextScaleModel, tokenizer: Any, key: ScaleKey) -> ScalePlan:
        return ScalePlan(model, tokenizer.quantizer, key)

    def key(
        self, model: NextScaleModel, conditions: Conditions, sampling: Sampling, grid: Grid | None = None
    ) -> ScaleKey:
        return ScaleKey.of(self.name, model, conditions, sampling, grid, self.pruning(model.config))

    def _decoded(self, config: NextScaleConfig, grid: Grid) -> tuple[Grid, ...]:
        return config.scales(grid)[: self.num_forwards(config, grid)]

    def logits(
        self, model: NextScaleModel, tokenizer: Any, tokens: Tensor, conditions: Conditions, grid: Grid
    ) -> Tensor:
        plan = self.plan(model, tokenizer, self.key(model, conditions, Sampling(), grid))
        return plan.logits(tokens, conditions).reshape(*tokens.shape, -1)

    def costs(self, config: NextScaleConfig, work: Workload) -> list[ForwardCost]:
        return scale_costs(config, self.pruning(config), work)

    def image_bytes(
        self, config: NextScaleConfig, work: Workload, num_caches: int = 1, with_images: bool = True
    ) -> int:
        return scale_bytes(config, self.pruning(config), work, num_caches, with_images)


def _no_pruning(config: NextScaleConfig) -> str | None:
    if config.fastvar is not None:
        return None
    return "--decoder fastvar needs to know which tokens to drop, and this model does not say; pass --fastvar"


def _no_skipping(config: NextScaleConfig) -> str | None:
    if config.fastvar is not None and config.fastvar.num_scales is not None:
        return None
    return "--decoder truncate needs to know which scales to skip, and this model does not say; pass --fastvar-scales"


SCALE = ScaleDecoder("scale", lambda config: Pruning())
# The same scales skipped as by FastVAR, and nothing pruned.
TRUNCATE = ScaleDecoder(
    "truncate",
    lambda config: Pruning(num_scales=config.fastvar and config.fastvar.num_scales),
    _no_skipping,
    ("scale",),
)
FASTVAR = ScaleDecoder("fastvar", lambda config: config.fastvar or Pruning(), _no_pruning, ("scale", "truncate"))
