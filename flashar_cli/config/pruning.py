"""Which tokens of a next-scale model are not computed: cached token pruning and skipped scales."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashar_cli.config.base import Config
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds

ScaleIndex = Annotated[int, bounds.SCALE_INDEX]
Layer = Annotated[int, bounds.LAYER]
KeptOrder = Literal["score", "raster"]


class Pruning(Config):
    """FastVAR (arXiv 2503.23367: section 3): of some scales only the tokens that differ most from the mean token are
    computed, part by part; the others get what a smaller scale's tokens got from the same part. The default prunes
    nothing.
    """

    ratios: tuple[tuple[ScaleIndex, Annotated[float, bounds.RATE]], ...] = Field(
        (), description="pairs of a scale's index, counted from 0, and the share of its tokens that is dropped"
    )
    first_layer: Layer = Field(0, description="first block that drops tokens")
    last_layer: Layer | None = Field(None, description="last block that drops tokens; null: the last of all")
    cached_scale: ScaleIndex | None = Field(
        None,
        description="scale whose outputs stand in for those of dropped tokens; null: the last one before pruned scales",
    )
    num_scales: Annotated[int, bounds.NUM_SCALES] | None = Field(
        None, description="first scales that are decoded, of an image that has more; null: all of them"
    )
    order: KeptOrder = Field(
        "score", description="order in which kept tokens are computed: by falling difference, or as in the map"
    )

    @model_validator(mode="after")
    def _check_scales(self) -> Pruning:
        pruned = [scale for scale, _ in self.ratios]
        if len(set(pruned)) < len(pruned):
            raise ValueError(f"ratios names scales {pruned}; expected each once")
        if pruned and min(pruned) <= max(0, self.source_scale):
            raise ValueError(f"scale {min(pruned)} is pruned; expected scales after cached_scale {self.source_scale}")
        if self.last_layer is not None and self.last_layer < self.first_layer:
            raise ValueError(f"last_layer {self.last_layer} is before first_layer {self.first_layer}")
        if self.num_scales is not None and pruned and max(pruned) >= self.num_scales:
            raise ValueError(f"scale {max(pruned)} is pruned; scales 0 to {self.num_scales - 1} are decoded")
        return self

    @property
    def source_scale(self) -> int:
        """The scale whose outputs stand in for those of dropped tokens."""
        if self.cached_scale is not None:
            return self.cached_scale
        return min((scale for scale, _ in self.ratios), default=1) - 1

    def check(self, num_layers: int, num_scales: int) -> None:
        """Raises FlasharError where a model of so many layers, and of so many scales for its largest image, has no such
        layers or scales. Smaller images need not have them all.
        """
        last_layer = max(self.first_layer, self.last_layer or 0)
        if last_layer >= num_layers:
            raise FlasharError(f"layer {last_layer} is to drop tokens; this model has layers 0 to {num_layers - 1}")
        last_scale = max((scale for scale, _ in self.ratios), default=0)
        if last_scale >= num_scales:
            raise FlasharError(f"scale {last_scale} is to be pruned; this model has scales 0 to {num_scales - 1}")

    @property
    def in_words(self) -> str:
        """For reports."""
        ratios = ", ".join(f"{ratio:.0%} of scale {scale}" for scale, ratio in self.ratios)
        last = "last" if self.last_layer is None else self.last_layer
        pruned = f"drops {ratios} in layers {self.first_layer} to {last}, cached at scale {self.source_scale}"
        parts = [pruned] if self.ratios else []
        if self.num_scales is not None:
            parts.append(f"decodes {self.num_scales} scales")
        return "; ".join(parts) or "nothing"

    def later(self, num_scales: int) -> Pruning:
        """The same so many scales later (earlier where the number is negative), as far as these are there."""
        ratios = tuple((scale + num_scales, ratio) for scale, ratio in self.ratios if scale + num_scales > 0)
        cached, decoded = (
            None if each is None else max(least, each + num_scales)
            for each, least in ((self.cached_scale, 0), (self.num_scales, 1))
        )
        return Pruning.model_validate(
            {**self.model_dump(), "ratios": ratios, "cached_scale": cached, "num_scales": decoded}
        )

    def of_fewer_layers(self, num_layers: int, of_layers: int) -> Pruning:
        """The same share of the layers of a model that has ``num_layers`` instead of ``of_layers``."""
        first = self.first_layer * num_layers // of_layers
        last = None if self.last_layer is None else max(first, (self.last_layer + 1) * num_layers // of_layers - 1)
        return self.model_copy(update={"first_layer": first, "last_layer": last})

    def num_decoded(self, num_scales: int) -> int:
        """How many scales are decoded of an image that has so many."""
        return num_scales if self.num_scales is None else min(self.num_scales, num_scales)

    def layers(self, num_layers: int) -> range:
        """The blocks that drop tokens, of a model of so many."""
        return range(self.first_layer, num_layers if self.last_layer is None else self.last_layer + 1)

    def num_kept(self, scale: int, num_tokens: int) -> int:
        """How many tokens of a scale are computed in those blocks."""
        return num_tokens - int(num_tokens * dict(self.ratios).get(scale, 0.0))
