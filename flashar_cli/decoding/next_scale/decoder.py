"""Decoders of next-scale models: a forward a scale, on a static plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashar_cli.config import ModelConfig, NextScaleConfig, Pruning, Sampling
from flashar_cli.decoding.costs import ForwardCost, Workload
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.next_scale.costs import scale_bytes, scale_costs
from flashar_cli.decoding.next_scale.plan import ScaleKey, ScalePlan
from flashar_cli.grid import Grid
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions


class ScaleDecoder(Decoder):
    """Decodes as ``pruning`` says for a model; None: the model has nothing that says it."""

    def __init__(self, name: str, pruning: Callable[[NextScaleConfig], Pruning | None]) -> None:
        self.name, self._pruning = name, pruning

    def pruning(self, config: NextScaleConfig) -> Pruning:
        """Which tokens are not computed."""
        found = self._pruning(config)
        assert found is not None, "see obstacle"
        return found

    def obstacle(self, config: ModelConfig) -> str | None:
        if not isinstance(config, NextScaleConfig):
            return f"--decoder {self.name} predicts whole maps; this model takes one token after the other"
        if self._pruning(config) is None:
            return f"--decoder {self.name} needs to know what to leave out, and this model does not say; pass --fastvar"
        return None

    def num_forwards(self, config: NextScaleConfig, grid: Grid) -> int:
        return len(config.scales(grid)) - self.pruning(config).skipped

    def token_shape(self, config: NextScaleConfig, grid: Grid) -> tuple[int, ...]:
        return sum(scale.num_cells for scale in self._decoded(config, grid)), *config.token_shape

    def token_maps(self, config: NextScaleConfig, grid: Grid) -> dict[str, tuple[int, ...]]:
        return {
            f"scale_{index}": (scale.height, scale.width, *config.token_shape)
            for index, scale in enumerate(self._decoded(config, grid))
        }

    def check(self, model: NextScaleModel, conditions: Conditions, grid: Grid) -> None:
        self.pruning(model.config).check(model.config.num_layers, len(model.config.scales(grid)))

    def plan(self, model: NextScaleModel, tokenizer: Any, key: ScaleKey) -> ScalePlan:
        return ScalePlan(model, tokenizer.quantizer, key)

    def key(
        self, model: NextScaleModel, conditions: Conditions, sampling: Sampling, grid: Grid | None = None
    ) -> ScaleKey:
        return ScaleKey.of(self.name, model, conditions, sampling, grid, self.pruning(model.config))

    def _decoded(self, config: NextScaleConfig, grid: Grid) -> tuple[Grid, ...]:
        return config.scales(grid)[: self.num_forwards(config, grid)]

    def costs(self, config: NextScaleConfig, work: Workload) -> list[ForwardCost]:
        return scale_costs(config, self.pruning(config), work)

    def image_bytes(
        self, config: NextScaleConfig, work: Workload, num_caches: int = 1, with_images: bool = True
    ) -> int:
        return scale_bytes(config, self.pruning(config), work, num_caches, with_images)


def _skipping(pruning: Pruning | None) -> Pruning | None:
    """The same scales skipped, and nothing pruned."""
    return None if pruning is None else Pruning(skipped=pruning.skipped)


SCALE = ScaleDecoder("scale", lambda config: Pruning())
FASTVAR = ScaleDecoder("fastvar", lambda config: config.fastvar)
TRUNCATE = ScaleDecoder("truncate", lambda config: _skipping(config.fastvar))


def with_pruning(decoder: Decoder, pruning: Pruning) -> Decoder:
    """FastVAR, or its skipping alone, with other settings. Other decoders have none."""
    if decoder is FASTVAR:
        return ScaleDecoder(FASTVAR.name, lambda config: pruning)
    return ScaleDecoder(TRUNCATE.name, lambda config: _skipping(pruning)) if decoder is TRUNCATE else decoder
