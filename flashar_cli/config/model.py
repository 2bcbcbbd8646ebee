"""What every model is, of any kind: what its checkpoint's ``config.json`` says of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flashar_cli.config.base import Config, Text
from flashar_cli.config.prefix import PrefixConfig
from flashar_cli.config.pruning import Pruning
from flashar_cli.config.sampling import Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds
from flashar_cli.inputs.text import plain

FLOAT_BYTES = 4
Layout = Literal["flashar", "upstream"]
MAPS_AT_ONCE = 4  # a convolution's input and output, and the working memory of its algorithm


class GridConfig(Config):
    """Token rows and columns of every image of this model."""

    height: Annotated[int, bounds.SIDE]
    width: Annotated[int, bounds.SIDE]


class Subset(Config):
    """Which images a model was adapted on, bad ones left out."""

    size: Annotated[int, bounds.IMAGES]
    seed: Annotated[int, bounds.SEED] = Field(description="the seed that chose them")
    ids_sha256: Text = Field(description="SHA-256 of their ids in alphabetical order, one a line")


class Provenance(Config):
    """Where the weights come from. Informative; nothing is computed from it."""

    tool_version: Text
    source: Text | None = None
    source_sha256: Text | None = None
    recipe: Annotated[dict[str, Any], AfterValidator(plain)] | None = None
    data_fingerprint: Text | None = None
    subset: Subset | None = None
    notes: Text | None = None


class ModelConfig(Config, ABC):
    """The content of a ``config.json`` of any ``kind``, the only place of these facts."""

    kind: str
    format_version: Literal[1] = 1
    family: Text
    prefix: PrefixConfig
    grid: GridConfig
    tokenizer: Any = None
    generation: Sampling = Sampling()
    class_names: tuple[Text, ...] | None = None
    adapter: bool = Field(
        False, description="whether adapter/ has low-rank adapters, which are added to the weights on loading"
    )
    weights: Layout = Field("flashar", description="whose names and shapes the stored tensors of the model have")
    provenance: Provenance

    @model_validator(mode="after")
    def _check_class_names(self) -> ModelConfig:
        self.prefix.check_class_names(self.class_names)
        return self

    def with_fastvar(self, pruning: Pruning) -> ModelConfig:
        """The same with other settings of FastVAR. Raises FlasharError where the model can't have these."""
        raise FlasharError("FastVAR drops tokens of whole maps; this model takes one token after the other")

    @abstractmethod
    def with_grids(self, grids: Sequence[Grid]) -> ModelConfig:
        """A shape that makes images of these grids, the first by default: for speed, not for trained weights. Raises
        FlasharError where there is none.
        """

    @abstractmethod
    def with_layers(self, num_layers: int) -> ModelConfig:
        """The shape with so many of its transformer blocks: for speed, not for trained weights."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Transformer blocks, without those of a branch."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Model width D."""

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Query heads A of a block."""

    @property
    @abstractmethod
    def structure(self) -> str:
        """How it predicts, in a few words."""

    @property
    @abstractmethod
    def cache_values(self) -> int:
        """Keys and values that are kept of one row of a batch while an image of ``order_grid`` is made."""

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """All weights that a checkpoint stores except those of the tokenizer."""

    @property
    def order_grid(self) -> Grid:
        """Rows and columns of tokens of an image for which nobody asks for others."""
        return Grid(self.grid.height, self.grid.width)

    @abstractmethod
    def choose_grid(self, wanted: Grid | None) -> Grid:
        """The grid of tokens to make; None: the model's own. Raises FlasharError for one that it can't make."""

    @abstractmethod
    def num_draws(self, grid: Grid) -> int:
        """Uniform numbers that sampling an image takes, by whatever decoder."""

    @property
    def pixels_per_token(self) -> int:
        """Image pixels along each side of a token of ``order_grid``. The model must have a tokenizer."""
        assert self.tokenizer is not None
        factor: int = self.tokenizer.downsample
        return factor

    def image_bytes(self, grid: Grid) -> int:
        """Memory that the image tokenizer needs for one image, in float32; 0 without a tokenizer."""
        if self.tokenizer is None:
            return 0
        num_pixels = grid.num_cells * self.pixels_per_token**2
        values: int = self.tokenizer.image_values(num_pixels)
        return MAPS_AT_ONCE * values * FLOAT_BYTES
