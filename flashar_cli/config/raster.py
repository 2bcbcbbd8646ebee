"""What a raster model is: a decoder of one token after the other, with a vertical branch or without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashar_cli.config.backbone import BackboneConfig
from flashar_cli.config.branch import GATES, BranchConfig
from flashar_cli.config.diffusion import DiffusionConfig
from flashar_cli.config.model import GridConfig, ModelConfig
from flashar_cli.config.prefix import Prefix
from flashar_cli.config.tokenizer import TokenizerConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid, Order
from flashar_cli.inputs import bounds


class RasterConfig(ModelConfig):
    """The ``config.json`` of a raster model: of a base, or of one that was adapted with a ``branch`` or to block
    ``diffusion``.
    """

    kind: Literal["raster"] = "raster"
    backbone: BackboneConfig
    prefix: Prefix
    branch: BranchConfig | None = None
    diffusion: DiffusionConfig | None = None
    tokenizer: TokenizerConfig | None = None
    raster_loss: Annotated[float, bounds.LOSS] | None = Field(
        None, description="validation cross-entropy of the raster base, nats per token, where it was measured"
    )

    @model_validator(mode="after")
    def _check_parts(self) -> RasterConfig:
        if self.branch and self.branch.layer > self.backbone.num_layers:
            raise ValueError(f"branch.layer {self.branch.layer} is beyond the last block {self.backbone.num_layers}")
        if self.branch and self.diffusion:
            raise ValueError("a model has a branch or diffusion, not both")
        if self.diffusion and self.prefix.has_line_ends:
            raise ValueError("blocks of diffusion have no place for the token that ends each row")
        if self.tokenizer and self.tokenizer.codebook_size != self.backbone.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.codebook_size} tokens, the model {self.backbone.vocab_size}"
            )
        return self

    def with_grids(self, grids: Sequence[Grid]) -> RasterConfig:
        first = grids[0]
        return self.model_copy(update={"grid": GridConfig(height=first.height, width=first.width)})

    def with_layers(self, num_layers: int) -> RasterConfig:
        """A branch stays where it was, or begins after the last block."""
        fewer = {"backbone": self.backbone.model_copy(update={"num_layers": num_layers})}
        if self.branch is None:
            return self.model_copy(update=fewer)
        branch = self.branch.model_copy(update={"layer": min(self.branch.layer, num_layers)})
        return self.model_copy(update={**fewer, "branch": branch})

    @property
    def num_layers(self) -> int:
        return self.backbone.num_layers

    @property
    def is_base(self) -> bool:
        """Whether it was not adapted."""
        return self.branch is None and self.diffusion is None

    @property
    def num_blocks(self) -> int:
        """Blocks of backbone and branch; each has its own part of the key-value cache."""
        return self.backbone.num_layers + (self.branch.depth if self.branch else 0)

    @property
    def num_weights(self) -> int:
        """Weights of all parts but the tokenizer, as a checkpoint stores them."""
        backbone, num_heads = self.backbone, 2 if self.branch else 1
        count = self.num_blocks * backbone.block_weights + num_heads * backbone.head_weights + self.gate_weights
        count += backbone.dim if self.diffusion else 0
        return count + backbone.embedding_weights + self.prefix.num_weights(backbone.dim)

    @property
    def gate_weights(self) -> int:
        """Weights of the fusion gate; 0 without a branch."""
        backbone, branch = self.backbone, self.branch
        if branch is None:
            return 0
        return GATES[branch.gate].num_weights(backbone.dim, backbone.vocab_size, branch)

    @property
    def structure(self) -> str:
        if self.diffusion is not None:
            return f"blocks of {self.diffusion.block}"
        return "raster" if self.branch is None else f"branch {self.branch.layer}/{self.num_layers}"

    @property
    def width(self) -> int:
        return self.backbone.dim

    @property
    def num_heads(self) -> int:
        return self.backbone.num_heads

    @property
    def cache_values(self) -> int:
        backbone = self.backbone
        each = 2 * self.num_blocks * backbone.num_kv_heads * backbone.head_dim
        return each * (self.prefix.longest + self.order_grid.num_cells)

    def choose_grid(self, wanted: Grid | None) -> Grid:
        grid = wanted or self.order_grid
        if grid != self.order_grid and self.backbone.max_positions is None:
            raise FlasharError(f"the grid is {grid}, but this model makes images of {self.order_grid} tokens alone")
        self.check_positions(grid, 1)
        return grid

    def check_positions(self, grid: Grid, prefix_length: int) -> None:
        """Raises FlasharError for more positions than the model knows: of the prefix, and of rows with an end of
        line.
        """
        most, needed = self.backbone.max_positions, prefix_length + grid.height * (grid.width + 1)
        if most is not None and needed > most:
            raise FlasharError(
                f"a grid of {grid} after {prefix_length} prefix tokens takes {needed} positions; this model knows "
                f"{most}; choose a smaller grid or a shorter prompt"
            )

    @property
    def num_options(self) -> int:
        """What a token is one of."""
        return self.backbone.vocab_size

    def num_draws(self, grid: Grid) -> int:
        return grid.num_cells

    def raster(self, grid: Grid) -> Order:
        """The order that the base was trained in, with the end-of-line tokens that it expects."""
        return grid.raster(line_ends=self.prefix.has_line_ends)
