"""What a model is: the content of a checkpoint's ``config.json``, and nothing else holds these facts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flashar_cli import bounds
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.reading import read_json
from flashar_cli.text import plain, shown, without_controls

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
Text = Annotated[str, AfterValidator(without_controls)]
GateKind = Literal["hidden", "logits", "scalar", "mean"]
ModelT = TypeVar("ModelT", bound=BaseModel)


class Config(BaseModel):
    """Immutable; unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneConfig(Config):
    """A Llama-like decoder: RMSNorm, SwiGLU, rotary positions."""

    dim: Annotated[int, bounds.WIDTH] = Field(description="model width D")
    num_layers: Annotated[int, bounds.LAYERS] = Field(description="transformer blocks L")
    num_heads: Annotated[int, bounds.HEADS] = Field(description="query heads A")
    num_kv_heads: Annotated[int, bounds.HEADS] = Field(
        description="key and value heads; num_heads for plain multi-head attention"
    )
    ffn_dim: Annotated[int, bounds.WIDTH] = Field(description="inner width of the SwiGLU feed-forward")
    vocab_size: Annotated[int, bounds.CODES] = Field(description="codebook size V")
    norm_eps: Annotated[float, bounds.NORM_EPS] = 1e-5
    rope_base: Annotated[float, bounds.ROPE_BASE] = 10000.0

    @model_validator(mode="after")
    def _check_heads(self) -> BackboneConfig:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 4:
            raise ValueError(f"head_dim {self.head_dim} is not a multiple of 4, as 2-D rotary positions need")
        return self

    @property
    def head_dim(self) -> int:
        """E = D / A."""
        return self.dim // self.num_heads


class ClassPrefix(Config):
    """One prefix token: the class embedding. Class ``num_classes`` is the unconditional one."""

    kind: Literal["class"] = "class"
    num_classes: Annotated[int, bounds.CLASSES]

    @property
    def length(self) -> int:
        return 1


class CaptionPrefix(Config):
    """``length`` prefix tokens: left-padded text-encoder features of ``feature_dim`` values each."""

    kind: Literal["caption"] = "caption"
    feature_dim: Annotated[int, bounds.WIDTH]
    length: Annotated[int, bounds.PREFIX] = 120


class GridConfig(Config):
    """Token rows and columns of every picture of this model."""

    height: Annotated[int, bounds.SIDE]
    width: Annotated[int, bounds.SIDE]

    @property
    def grid(self) -> Grid:
        return Grid(self.height, self.width)


class BranchConfig(Config):
    """The vertical branch and its fusion gate."""

    layer: Annotated[int, bounds.LAYER] = Field(
        description="m: the branch reads the hidden state before backbone block m; m = L: after the last"
    )
    depth: Annotated[int, bounds.LAYERS] = Field(1, description="d_v: transformer blocks of the branch")
    gate: GateKind = "hidden"
    gate_dim: Annotated[int, bounds.WIDTH] | None = Field(
        None, description="inner width of the gate's MLP; null for gates without one"
    )


class VQConfig(Config):
    """LlamaGen's image tokenizer (upstream: tokenizer/tokenizer_image/vq_model.py ModelArgs)."""

    kind: Literal["vq"] = "vq"
    codebook_size: Annotated[int, bounds.CODES] = 16384
    codebook_dim: Annotated[int, bounds.WIDTH] = 8
    channels: Annotated[int, bounds.CHANNELS] = Field(
        128, multiple_of=32, description="base width; a multiple of 32 for GroupNorm(32)"
    )
    encoder_multipliers: tuple[Annotated[int, bounds.MULTIPLIER], ...] = (1, 1, 2, 2, 4)
    decoder_multipliers: tuple[Annotated[int, bounds.MULTIPLIER], ...] = (1, 1, 2, 2, 4)
    num_res_blocks: Annotated[int, bounds.RES_BLOCKS] = 2
    latent_channels: Annotated[int, bounds.WIDTH] = Field(
        256, description="z_channels: width between encoder and quant_conv"
    )

    @model_validator(mode="after")
    def _check_levels(self) -> VQConfig:
        levels = len(self.encoder_multipliers)
        if levels not in bounds.LEVELS or len(self.decoder_multipliers) != levels:
            raise ValueError(
                f"{levels} encoder_multipliers and {len(self.decoder_multipliers)} decoder_multipliers; expected as "
                f"many of both, {bounds.LEVELS}"
            )
        return self

    @property
    def downsample(self) -> int:
        """Picture pixels per token along each side."""
        return 2 ** (len(self.encoder_multipliers) - 1)


class GenerationDefaults(Config):
    """Sampling settings that generate, eval and bench use unless told otherwise."""

    cfg_scale: Annotated[float, bounds.CFG_SCALE] = 1.0
    temperature: Annotated[float, bounds.TEMPERATURE] = 1.0
    top_k: Annotated[int, bounds.TOP_K] = Field(0, description="0: off")
    top_p: Annotated[float, bounds.TOP_P] = 1.0


class Subset(Config):
    """Which pictures a model was adapted on, bad ones left out."""

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
    prefix: Annotated[ClassPrefix | CaptionPrefix, Field(discriminator="kind")]
    grid: GridConfig
    branch: BranchConfig | None = None
    tokenizer: VQConfig | None = None
    generation: GenerationDefaults = GenerationDefaults()
    class_names: tuple[Text, ...] | None = None
    raster_loss: Annotated[float, bounds.LOSS] | None = Field(
        None, description="validation cross-entropy of the raster base, nats per token, where it was measured"
    )
    provenance: Provenance

    @field_validator("branch")
    @classmethod
    def _gate_dim_where_needed(cls, branch: BranchConfig | None) -> BranchConfig | None:
        if branch is not None and (branch.gate in ("hidden", "logits")) != (branch.gate_dim is not None):
            raise ValueError(f"gate '{branch.gate}' with gate_dim {branch.gate_dim}: only MLP gates have a gate_dim")
        return branch

    @model_validator(mode="after")
    def _check_parts(self) -> ModelConfig:
        if self.branch and self.branch.layer > self.backbone.num_layers:
            raise ValueError(f"branch.layer {self.branch.layer} is beyond the last block {self.backbone.num_layers}")
        if self.tokenizer and self.tokenizer.codebook_size != self.backbone.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.codebook_size} codes, the model {self.backbone.vocab_size}"
            )
        names = self.class_names
        if names is not None and isinstance(self.prefix, ClassPrefix) and len(names) != self.prefix.num_classes:
            raise ValueError(f"{len(names)} class_names for {self.prefix.num_classes} classes")
        return self

    @property
    def order_grid(self) -> Grid:
        return self.grid.grid


def default_gate_dim(gate: GateKind, dim: int, vocab_size: int) -> int | None:
    """Inner width of a gate's MLP: max(64, D // 8) for ``hidden``, max(32, V // 512) for ``logits``."""
    return {"hidden": max(64, dim // 8), "logits": max(32, vocab_size // 512)}.get(gate)


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


def validated(document: Any, model: type[ModelT], where: str, what: str) -> ModelT:
    """A decoded document as ``model``. Raises FlasharError that names every field which is wrong, and ``what`` was
    expected.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise FlasharError(f"{where} is not {what}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The problems of a pydantic error on one line: ``key: message (got value)``."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        place = ".".join(str(piece) for piece in item["loc"]) or "document"
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" (got {shown(item['input'])})"
        parts.append(f"{place}: {message}{got}")
    return "; ".join(parts)
