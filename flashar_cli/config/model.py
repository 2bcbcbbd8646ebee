"""What a model is: the content of a checkpoint's ``config.json``, the only place of these facts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flashar_cli.config.backbone import BackboneConfig
from flashar_cli.config.base import Config, Text, validated
from flashar_cli.config.branch import GATES, BranchConfig
from flashar_cli.config.prefix import Prefix
from flashar_cli.config.sampling import Sampling
from flashar_cli.config.tokenizer import TokenizerConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid, Order
from flashar_cli.inputs import bounds
from flashar_cli.inputs.reading import read_json
from flashar_cli.inputs.text import plain, shown

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
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


class ModelConfig(Config):
    """The whole of ``config.json``."""

    format_version: Literal[1] = 1
    family: Text
    backbone: BackboneConfig
    prefix: Prefix
    grid: GridConfig
    branch: BranchConfig | None = None
    tokenizer: TokenizerConfig | None = None
    adapter: bool = Field(
        False, description="whether adapter/ has low-rank adapters, which are added to the weights on loading"
    )
    generation: Sampling = Sampling()
    class_names: tuple[Text, ...] | None = None
    raster_loss: Annotated[float, bounds.LOSS] | None = Field(
        None, description="validation cross-entropy of the raster base, nats per token, where it was measured"
    )
    weights: Layout = Field("flashar", description="whose names and shapes the stored tensors of the model have")
    provenance: Provenance

    @model_validator(mode="after")
    def _check_parts(self) -> ModelConfig:
        if self.branch and self.branch.layer > self.backbone.num_layers:
            raise ValueError(f"branch.layer {self.branch.layer} is beyond the last block {self.backbone.num_layers}")
        if self.tokenizer and self.tokenizer.codebook_size != self.backbone.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.codebook_size} tokens, the model {self.backbone.vocab_size}"
            )
        self.prefix.check_class_names(self.class_names)
        return self

    @property
    def num_blocks(self) -> int:
        """Blocks of backbone and branch; each has its own part of the key-value cache."""
        return self.backbone.num_layers + (self.branch.depth if self.branch else 0)

    @property
    def num_weights(self) -> int:
        """Weights of prefix, backbone and branch: all that a checkpoint stores except those of the tokenizer."""
        backbone, num_heads = self.backbone, 2 if self.branch else 1
        count = self.num_blocks * backbone.block_weights + num_heads * backbone.head_weights + self.gate_weights
        return count + backbone.embedding_weights + self.prefix.num_weights(backbone.dim)

    @property
    def gate_weights(self) -> int:
        """Weights of the fusion gate; 0 without a branch."""
        backbone, branch = self.backbone, self.branch
        if branch is None:
            return 0
        return GATES[branch.gate].num_weights(backbone.dim, backbone.vocab_size, branch)

    def image_bytes(self, grid: Grid) -> int:
        """Memory that the image tokenizer needs for one image, in float32; 0 without a tokenizer."""
        if self.tokenizer is None:
            return 0
        num_pixels = grid.num_cells * self.tokenizer.downsample**2
        return MAPS_AT_ONCE * self.tokenizer.image_values(num_pixels) * FLOAT_BYTES

    def raster(self, grid: Grid) -> Order:
        """The order that the base was trained in, with the end-of-line tokens that it expects."""
        return grid.raster(line_ends=self.prefix.has_line_ends)

    @property
    def order_grid(self) -> Grid:
        return Grid(self.grid.height, self.grid.width)


def read_config(directory: Path) -> ModelConfig:
    """Reads and validates ``config.json``. Raises FlasharError that says what is wrong with it."""
    path = directory / CONFIG_FILE
    if not path.exists():
        raise FlasharError(
            f"{directory} is not a flashar checkpoint: it has no {CONFIG_FILE}; "
            "import upstream weights with `flashar convert SRC --out DIR`"
        )
    document = read_json(path)
    if not isinstance(document, dict):
        raise FlasharError(f"{path} holds a {type(document).__name__}; expected a JSON object")
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], where: str) -> ModelConfig:
    """Validates a decoded ``config.json``. Raises FlasharError that lists every problem in one line."""
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise FlasharError(
            f"{where} has format_version {shown(version)}; this flashar reads {FORMAT_VERSION}; convert the model again"
        )
    return validated(document, ModelConfig, where, "a valid config")
