"""What a next-scale model is: a transformer that predicts a whole map of tokens at a time, from coarse to fine.

Sources: VAR (arXiv 2404.02905, FoundationVision/VAR), Infinity (arXiv 2412.04431, FoundationVision/Infinity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashar_cli.config.base import Config
from flashar_cli.config.model import GridConfig, ModelConfig
from flashar_cli.config.prefix import CaptionMemory, ClassPrefix
from flashar_cli.config.pruning import Pruning
from flashar_cli.config.tokenizer import BSQConfig, ScaleTokenizerConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds

Scale = tuple[Annotated[int, bounds.SIDE], Annotated[int, bounds.SIDE]]  # rows and columns of a map of tokens
Schedule = tuple[Scale, ...]  # the maps of an image, coarse to fine
LARGEST_GROWTH = 4 / 3  # of a map's sides, where no published schedule goes on
ROPE_PARTS = 4  # head_dim is a multiple: rows and columns, each in pairs


class ScaleTransformerConfig(Config):
    """A stack of blocks that a condition modulates (adaLN): self-attention, cross-attention where the condition is a
    text, and a feed-forward of two layers.
    """

    dim: Annotated[int, bounds.WIDTH] = Field(description="model width D")
    num_layers: Annotated[int, bounds.LAYERS] = Field(description="transformer blocks L")
    num_heads: Annotated[int, bounds.HEADS] = Field(description="attention heads A; each has D / A values")
    ffn_dim: Annotated[int, bounds.WIDTH] = Field(description="inner width of the feed-forward")
    norm_eps: Annotated[float, bounds.NORM_EPS] = 1e-6
    cosine_attention: bool = Field(
        True,
        description="queries and keys have length 1, each head a learned scale; false: scale 0.25 / sqrt(D / A)",
    )
    shared_modulation: bool = Field(
        False, description="one linear layer modulates all blocks, each adds its own values; false: each block has one"
    )
    positions: Literal["learned", "rotary"] = Field(
        "learned",
        description="learned: a row for each token of all scales; rotary: by row and column in the finest map",
    )
    rope_base: Annotated[float, bounds.ROPE_BASE] = 10000.0
    num_levels: Annotated[int, bounds.NUM_SCALES] = Field(description="rows of the table of scales")

    @model_validator(mode="after")
    def _check_heads(self) -> ScaleTransformerConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}")
        if self.positions == "rotary" and self.head_dim % ROPE_PARTS:
            raise ValueError(f"head_dim {self.head_dim} is not a multiple of {ROPE_PARTS}, as rotary positions need")
        return self

    @property
    def head_dim(self) -> int:
        """Width E of an attention head."""
        return self.dim // self.num_heads

    @property
    def modulation_weights(self) -> int:
        """Weights of the linear layer that makes the six vectors of a modulation."""
        return 6 * self.dim * (self.dim + 1)

    def token_weights(self, cross_attention: bool) -> int:
        """Weights of a block's matrices that every token is multiplied with; a caption's keys and values are its
        own.
        """
        return (6 if cross_attention else 4) * self.dim**2 + 2 * self.dim * self.ffn_dim

    def token_outputs(self, cross_attention: bool) -> int:
        """Outputs of these matrices."""
        return (7 if cross_attention else 5) * self.dim + self.ffn_dim

    def block_weights(self, cross_attention: bool) -> int:
        """Weights of one block."""
        dim, scales = self.dim, self.num_heads if self.cosine_attention else 0
        attention = 4 * dim**2 + 3 * dim + scales  # biases of queries, values and output
        memory = 4 * dim**2 + 5 * dim if cross_attention else 0  # the same biases, and a norm's gain and bias
        ffn = 2 * dim * self.ffn_dim + self.ffn_dim + dim
        return attention + memory + ffn + (6 * dim if self.shared_modulation else self.modulation_weights)

    @property
    def shared_weights(self) -> int:
        """Weights beside those of blocks, prefix, and of what depends on the tokens: start, scales, modulations."""
        modulation = self.modulation_weights if self.shared_modulation else 0
        return (1 + self.num_levels) * self.dim + modulation + 2 * self.dim * (self.dim + 1)


class SchedulesConfig(Config):
    """The maps of tokens that images are made of: for each shape of images one schedule of ``longest`` scales, of which
    the first ``lengths[i]`` are an image of a smaller size. The last map of an image, its grid, names it.
    """

    longest: tuple[Schedule, ...] = Field(min_length=1, description="one for each aspect ratio")
    lengths: tuple[Annotated[int, bounds.NUM_SCALES], ...] = Field(min_length=1, description="scales of an image")

    @model_validator(mode="after")
    def _check_schedules(self) -> SchedulesConfig:
        for schedule in self.longest:
            if len(schedule) != max(self.lengths):
                raise ValueError(
                    f"a schedule has {len(schedule)} scales; expected {max(self.lengths)}, as lengths says"
                )
            sizes = [height * width for height, width in schedule]
            if sizes[0] != 1 or any(small >= large for small, large in pairwise(sizes)):
                raise ValueError(f"the scales of a schedule have {sizes} tokens; expected one, then more at each")
        ends = [schedule[length - 1] for schedule in self.longest for length in self.lengths]
        if len(set(ends)) < len(ends):
            raise ValueError("two schedules end with the same map; expected one for each")
        return self

    def of(self, grid: Grid) -> tuple[Grid, ...] | None:
        """The scales of an image whose last map has this size; None where there is none."""
        found = self._find(grid)
        return None if found is None else tuple(Grid(*scale) for scale in found[0][: found[1]])

    def finest(self, grid: Grid) -> Grid | None:
        """The last map of the longest schedule of this shape; None where there is none."""
        found = self._find(grid)
        return None if found is None else Grid(*found[0][-1])

    def to(self, grid: Grid) -> Schedule:
        """A schedule that ends with this map, by the longest one of the nearest shape: its smaller maps, then, where
        none of its maps is larger, as many as it takes to grow by a third at most.
        """
        shape, end = math.log(grid.height / grid.width), (grid.height, grid.width)
        like = min(self.longest, key=lambda each: abs(math.log(each[-1][0] / each[-1][1]) - shape))
        smaller = [scale for scale in like if scale[0] < end[0] and scale[1] < end[1]] or [(1, 1)]
        last, is_larger = smaller[-1], end[0] > like[-1][0] or end[1] > like[-1][1]
        growth = max(end[0] / last[0], end[1] / last[1])
        steps = max(1, math.ceil(math.log(growth) / math.log(LARGEST_GROWTH) - 1e-9)) if is_larger else 1
        found = smaller
        for step in range(1, steps + 1):
            share = step / steps
            height, width = (round(a * (b / a) ** share) for a, b in zip(last, end, strict=True))
            if height * width > found[-1][0] * found[-1][1]:  # rounding may repeat a map
                found = [*found, (height, width)]
        return tuple(found)

    @property
    def grids(self) -> list[Grid]:
        """The last maps of all images that can be made, in the order of the lengths."""
        return [Grid(*schedule[length - 1]) for length in self.lengths for schedule in self.longest]

    def _find(self, grid: Grid) -> tuple[Schedule, int] | None:
        ends = ((schedule, length) for schedule in self.longest for length in self.lengths)
        return next((end for end in ends if end[0][end[1] - 1] == (grid.height, grid.width)), None)


class NextScaleConfig(ModelConfig):
    """The ``config.json`` of a next-scale model. A token is ``patch`` x ``patch`` positions of the latent."""

    kind: Literal["next-scale"] = "next-scale"
    transformer: ScaleTransformerConfig
    prefix: Annotated[ClassPrefix | CaptionMemory, Field(discriminator="kind")]
    schedules: SchedulesConfig
    patch: Annotated[int, bounds.PATCH] = 1
    tokenizer: ScaleTokenizerConfig
    fastvar: Pruning | None = Field(None, description="what the decoders fastvar and truncate leave out by default")

    @model_validator(mode="after")
    def _check_parts(self) -> NextScaleConfig:
        transformer, schedules = self.transformer, self.schedules
        if schedules.of(self.order_grid) is None:
            raise ValueError(f"grid {self.order_grid} is the end of no schedule")
        if transformer.num_levels < max(schedules.lengths):
            raise ValueError(f"{transformer.num_levels} num_levels for {max(schedules.lengths)} scales")
        if transformer.positions == "learned" and len(schedules.grids) > 1:
            raise ValueError(f"learned positions and {len(schedules.grids)} schedules; expected one")
        if self.fastvar is not None:
            self.with_fastvar(self.fastvar)
        if self.patch > 1 and not isinstance(self.tokenizer, BSQConfig):
            raise ValueError(f"patch {self.patch} with a codebook; only bits are laid side by side")
        if isinstance(self.prefix, CaptionMemory) and transformer.dim % self.prefix.pool_heads:
            raise ValueError(f"dim {transformer.dim} is not divisible by pool_heads {self.prefix.pool_heads}")
        return self

    def with_fastvar(self, pruning: Pruning) -> NextScaleConfig:
        pruning.check(self.num_layers, max(self.schedules.lengths))
        return self.model_copy(update={"fastvar": pruning})

    def with_grids(self, grids: Sequence[Grid]) -> NextScaleConfig:
        """Grids of published schedules, or one other: the published one of its shape is cut or goes on to it, and what
        FastVAR leaves out stays as far from the end.
        """
        first = {"grid": GridConfig(height=grids[0].height, width=grids[0].width)}
        if all(self.schedules.of(grid) for grid in grids):
            return self.model_copy(update=first)
        if len(grids) > 1:
            unknown = next(grid for grid in grids if self.schedules.of(grid) is None)
            raise FlasharError(f"there is no schedule for {unknown}; make images of that grid alone")
        schedule = self.schedules.to(grids[0])
        added = len(schedule) - max(self.schedules.lengths)
        levels = self.transformer.model_copy(update={"num_levels": max(self.transformer.num_levels, len(schedule))})
        return self.model_copy(
            update={
                **first,
                "transformer": levels,
                "schedules": SchedulesConfig(longest=(schedule,), lengths=(len(schedule),)),
                "fastvar": self.fastvar and self.fastvar.later(added),
            }
        )

    def with_layers(self, num_layers: int) -> NextScaleConfig:
        """FastVAR drops tokens in the same share of the blocks."""
        part = self.transformer.model_copy(update={"num_layers": num_layers})
        fastvar = self.fastvar and self.fastvar.of_fewer_layers(num_layers, self.num_layers)
        return self.model_copy(update={"transformer": part, "fastvar": fastvar})

    @property
    def num_layers(self) -> int:
        return self.transformer.num_layers

    @property
    def width(self) -> int:
        return self.transformer.dim

    @property
    def num_heads(self) -> int:
        return self.transformer.num_heads

    @property
    def structure(self) -> str:
        return f"{len(self.scales(self.order_grid))} scales"

    @property
    def cache_values(self) -> int:
        num_tokens = sum(scale.num_cells for scale in self.scales(self.order_grid))
        memory = self.prefix.longest if self.cross_attention else 0
        return 2 * self.num_layers * self.width * (num_tokens + memory)

    def choose_grid(self, wanted: Grid | None) -> Grid:
        grid = wanted or self.order_grid
        self.scales(grid)
        return grid

    def num_draws(self, grid: Grid) -> int:
        return self.num_choices * sum(scale.num_cells for scale in self.scales(grid))

    def scales(self, grid: Grid) -> tuple[Grid, ...]:
        """The maps of tokens of an image that ends with this one. Raises FlasharError where there is no schedule."""
        found = self.schedules.of(grid)
        if found is None:
            known = ", ".join(map(str, self.schedules.grids))
            raise FlasharError(f"the grid is {grid}, for which this model has no schedule; expected one of {known}")
        return found

    @property
    def pixels_per_token(self) -> int:
        return self.tokenizer.downsample * self.patch

    @property
    def token_dim(self) -> int:
        """Values of the latent that a token of the finest map stands for: the width of the transformer's input."""
        return self.tokenizer.latent_dim * self.patch**2

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of one token: a number, which is a row of the codebook, or its bits."""
        return (self.token_dim,) if isinstance(self.tokenizer, BSQConfig) else ()

    @property
    def num_choices(self) -> int:
        """Choices that make a token: one of a row of the codebook, or one of each bit."""
        return math.prod(self.token_shape)

    @property
    def num_options(self) -> int:
        """What a choice is among: the rows of the codebook, or the two values of a bit."""
        return 2 if isinstance(self.tokenizer, BSQConfig) else self.tokenizer.codebook_size

    @property
    def head_outputs(self) -> int:
        """Logits of a token: those of its choices, one after the other."""
        return self.num_choices * self.num_options

    @property
    def num_tokens(self) -> int:
        """Tokens of all scales of the longest image."""
        return max(sum(height * width for height, width in schedule) for schedule in self.schedules.longest)

    @property
    def cross_attention(self) -> bool:
        """Whether blocks read the condition as a sequence."""
        return isinstance(self.prefix, CaptionMemory)

    @property
    def table_weights(self) -> int:
        """Weights of tables, of which a forward reads a few rows."""
        learned = self.transformer.positions == "learned"
        return (self.num_tokens if learned else 0) * self.width + self.transformer.num_levels * self.width

    def condition_products(self, length: int) -> int:
        """Multiplications and additions of a row that make its condition and modulations; a caption has this length."""
        part, prefix = self.transformer, self.prefix
        layers = 1 if part.shared_modulation else part.num_layers
        vectors = layers * 6 * part.dim**2 + 2 * part.dim**2
        if isinstance(prefix, ClassPrefix):
            return vectors
        # Keys, values and the first of two layers of each feature, the second layer, the pooling's scores and sums.
        features = length * (3 * prefix.feature_dim * part.dim + part.dim**2 + 2 * part.dim) + part.dim**2
        return vectors + features + length * part.num_layers * 2 * part.dim**2

    @property
    def num_weights(self) -> int:
        part = self.transformer
        blocks = part.num_layers * part.block_weights(self.cross_attention)
        places = self.num_tokens * part.dim if part.positions == "learned" else 0
        ends = (self.token_dim + 1) * part.dim + (part.dim + 1) * self.head_outputs
        return blocks + part.shared_weights + places + ends + self.prefix.num_weights(part.dim)
