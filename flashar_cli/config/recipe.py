"""What a run is: the content of a recipe file, with every default in one place."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from flashar_cli.config import BackboneConfig, Config, GateKind, Text, explain
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.inputs.reading import read_toml
from flashar_cli.inputs.text import MOST_SHOWN, shown

Weight = Annotated[float, bounds.WEIGHT]
Rate = Annotated[float, bounds.RATE]
Share = Annotated[float, bounds.SHARE]
Steps = Annotated[int, bounds.STEPS]
Images = Annotated[int, bounds.IMAGES]
Batch = Annotated[int, bounds.BATCH]
Method = Literal["flashar", "block-diffusion"]
LoraTarget = Literal["wqkv", "wo", "w1", "w2", "w3"]  # nn/layers.py has these layers


class StageSettings(Config):
    """One stage of training: how fast, and which loss terms."""

    lr: Annotated[float, bounds.LEARNING_RATE] = Field(
        2e-5, description="peak learning rate of what the method adds; of all weights of a base"
    )
    backbone_lr_factor: Weight = Field(1.0, description="backbone learning rate / lr; 0 freezes prefix and backbone")
    warmup_steps: Annotated[int, bounds.WARMUP] = Field(0, description="steps of linear warm-up, then cosine")
    final_lr_factor: Share = Field(0.0, description="learning rate at the end of the cosine / lr")
    cosine_steps: Steps | None = Field(None, description="length of the cosine; null: the stage's")
    vertical_weight: Weight = Field(0.05, description="cross-entropy of the vertical prediction")
    horizontal_weight: Weight = Field(0.0, description="cross-entropy of the horizontal prediction")
    distill_weight: Weight = Field(0.0, description="KL from the frozen base's raster prediction to the vertical one")
    distill_temperature: Annotated[float, bounds.SOFTNESS] = 2.0
    gate_entropy_weight: Weight = Field(0.0, description="rewards gates that stay undecided")

    @model_validator(mode="after")
    def _check_distillation(self) -> StageSettings:
        if self.distill_weight and self.backbone_lr_factor:
            raise ValueError("distill_weight needs a frozen backbone to distill from: backbone_lr_factor 0")
        return self


@dataclass(frozen=True)
class Stage:
    """A stage of ``steps`` optimizer steps."""

    name: str
    steps: int
    settings: StageSettings


class OptimSettings(Config):
    """Batches and AdamW."""

    batch_size: Batch = Field(512, description="images an optimizer step, all micro-batches together")
    beta1: Rate = 0.9
    beta2: Rate = 0.95
    weight_decay: Weight = Field(0.05, description="of matrices; vectors and embeddings are not decayed")
    grad_clip: Weight = Field(1.0, description="largest gradient norm; 0: off")
    class_drop: Share = Field(0.1, description="images trained without their condition, for guidance")
    corruption: Share = Field(0.0, description="context tokens replaced by random ones; targets stay")
    token_drop: Rate = Field(0.0, description="context tokens whose embedding is zeroed")
    dropout: Rate = Field(0.0, description="dropout of residual branches")
    ema_decay: Rate = Field(0.0, description="decay of the averaged weights, which become the model; 0: off")


class EngineSettings(Config):
    """How a step is computed. A resumed run may change it: what is learned stays the same, apart from rounding."""

    micro_batch_size: Batch = Field(32, description="most images in a forward of one process")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="of several processes: ddp copies the model, fsdp shards it; auto: copies where they fit"
    )
    attention: Literal["sdpa", "flex"] = Field("sdpa", description="flex: FlexAttention, which skips masked blocks")
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory")
    compile: bool = Field(
        False,
        description="torch.compile the blocks: a wait at the start, then faster steps; prompts are padded alike",
    )


class LoraSettings(Config):
    """Low-rank adapters (arXiv 2106.09685): stage 2 trains them in place of the backbone's own weights."""

    rank: Annotated[int, bounds.RANK] = Field(0, description="of an adapter; 0: off, stage 2 trains the backbone")
    alpha: Annotated[float, bounds.SCALE] = Field(32.0, description="an adapter's product is scaled by alpha / rank")
    dropout: Rate = Field(0.0, description="dropout of an adapter's input")
    targets: tuple[LoraTarget, ...] = Field(
        get_args(LoraTarget), min_length=1, description="linear layers of each backbone block that get an adapter"
    )
    lr_factor: Annotated[float, bounds.SCALE] = Field(
        10.0, description="learning rate of adapters / that of the backbone"
    )
    merge: bool = Field(True, description="add adapters to the weights at the end; false: store them beside these")

    @model_validator(mode="after")
    def _check_targets(self) -> LoraSettings:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets has a layer twice")
        return self

    @property
    def apart(self) -> bool:
        """Whether the adapted checkpoint has adapters beside its weights."""
        return self.rank > 0 and not self.merge

    def num_weights(self, backbone: BackboneConfig) -> int:
        """Weights of the adapters of all blocks."""
        heads_dim = backbone.num_heads * backbone.head_dim
        sides = {
            "wqkv": backbone.dim + backbone.qkv_dim,
            "wo": heads_dim + backbone.dim,
            "w1": backbone.dim + backbone.ffn_dim,
            "w2": backbone.ffn_dim + backbone.dim,
            "w3": backbone.dim + backbone.ffn_dim,
        }
        return backbone.num_layers * self.rank * sum(sides[target] for target in self.targets)


NO_LORA = LoraSettings()


class BranchSettings(Config):
    """The branch to add."""

    layer: Annotated[int, bounds.LAYER] | None = Field(None, description="m; null: a probe's, else L - depth")
    depth: Annotated[int, bounds.LAYERS] = 1
    gate: GateKind = "hidden"


class DiffusionSettings(Config):
    """The blocks to draw by diffusion."""

    block: Annotated[int, bounds.WINDOW] | None = Field(
        None, description="tokens in raster order; null: those of a row of the grid"
    )


class GenerationSettings(Config):
    """Sampling defaults of the adapted model; null: those of the base."""

    cfg_scale: Annotated[float, bounds.CFG_SCALE] | None = None
    temperature: Annotated[float, bounds.TEMPERATURE] | None = None
    top_k: Annotated[int, bounds.TOP_K] | None = None
    top_p: Annotated[float, bounds.TOP_P] | None = None
    min_p: Annotated[float, bounds.MIN_P] | None = None


class DataSettings(Config):
    """What to train on."""

    source: Text | None = Field(
        None, description="as --data: shapes[:N], a folder, .parquet, .tar, .jsonl, token shards, a `datasets` id"
    )
    split: Text | None = Field(None, description="of a `datasets` id or Parquet files; null: train, or all files")
    image_column: Text = "image"
    label_column: Text = "label"
    caption_column: Text = "caption"
    augment: Text = Field("center", description="views of an image, one an epoch: center, center-flip or ten-crop")
    crop_ratio: Annotated[float, bounds.CROP_RATIO] = Field(
        1.1, description="of ten-crop: size of the image that is cut / size of a crop"
    )
    max_bad: Text = Field("1%", description="unreadable images to skip at most: a percentage or a count")
    subset: Images | None = Field(80_000, description="images, class by class; null: all")
    num_validation: Images = Field(512, description="images of the subset kept for validation")


DATA_DEFAULTS = DataSettings()


class AdaptRecipe(Config):
    """Two-stage adaptation (paper: section 4). Stage 1 trains branch and gate, stage 2 everything, or with
    ``lora`` adapters in place of the backbone. The method block-diffusion has no part to train first, so that stage 2
    takes all steps.
    """

    method: Method = Field("flashar", description="what the model learns: flashar, or block-diffusion to compare with")

    steps: Annotated[int, bounds.STAGED_STEPS] = Field(10_000, description="optimizer steps of both stages together")
    stage1_fraction: Rate = Field(0.2, description="share of the steps that stage 1 takes; 0: no stage 1")
    stage1: StageSettings = StageSettings(backbone_lr_factor=0.0, distill_weight=0.2)
    stage2: StageSettings = StageSettings(backbone_lr_factor=0.2)
    branch: BranchSettings = BranchSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    generation: GenerationSettings = GenerationSettings()
    lora: LoraSettings = NO_LORA
    data: DataSettings = DATA_DEFAULTS
    optim: OptimSettings = OptimSettings()
    engine: EngineSettings = EngineSettings()
    save_every: Steps = Field(500, description="steps between saves of the training state")
    keep_states: Annotated[int, bounds.REPEATS] = Field(2, description="training states kept; older ones are deleted")
    validate_every: Steps = Field(1000, description="steps between validations inside a stage")

    @model_validator(mode="after")
    def _check_method(self) -> AdaptRecipe:
        if self.method == "flashar":
            if self.diffusion != DiffusionSettings():
                raise ValueError("diffusion.* is for the method block-diffusion")
            return self
        if self.branch != BranchSettings():
            raise ValueError("branch.* is for the method flashar; block-diffusion adds no branch")
        if self.lora.rank:
            raise ValueError("lora.rank is for the method flashar; block-diffusion trains all weights")
        if self.engine.attention == "flex":
            raise ValueError("engine.attention flex is for the method flashar; use sdpa with block-diffusion")
        if self.engine.strategy == "fsdp":
            raise ValueError("engine.strategy fsdp is for the method flashar; block-diffusion can't be sharded")
        return self

    @property
    def stages(self) -> list[Stage]:
        """The stages with their numbers of steps."""
        has_first = self.method == "flashar" and self.stage1_fraction > 0
        first = max(1, round(self.steps * self.stage1_fraction)) if has_first else 0
        stages = [Stage("stage1", first, self.stage1), Stage("stage2", self.steps - first, self.stage2)]
        return [stage for stage in stages if stage.steps]


def recipes_dir() -> Path:
    """Where the shipped recipes are: inside the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipes_dir().glob("*.toml"))


def load_recipe(
    name: str | None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> AdaptRecipe:
    """A shipped recipe by name, or a TOML file; None: the defaults. ``overrides`` are ``stage1.lr=1e-4`` and so on;
    ``values``, by key, are set after them and not parsed. A recipe with ``extends = NAME`` changes that one.

    Raises FlasharError for an unknown recipe, file, key (with a suggestion) or value.
    """
    document = {} if name is None else _read(name)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not (key := key.strip()):
            raise FlasharError(f"--set {item}: expected KEY=VALUE, e.g. stage1.lr=1e-4")
        _set(document, key, _value(key, text), item)
    for key, value in (values or {}).items():
        _set(document, key, value, f"{key}={value}")
    _refuse_unknown(document, AdaptRecipe, name or "--set")
    try:
        return AdaptRecipe.model_validate(_merged(AdaptRecipe().model_dump(), document))
    except ValidationError as error:
        raise FlasharError(f"recipe {name or 'defaults'}: {explain(error)}") from None


def _read(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    path = recipes_dir() / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    if name in below:
        raise FlasharError(f"recipe {name} extends itself, by way of {below[-1]}")
    if not path.exists():
        near = difflib.get_close_matches(name, shipped_recipes(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped ones: {', '.join(shipped_recipes())}"
        raise FlasharError(f"there is no recipe '{name}'; {hint}")
    document = read_toml(path, f"recipe {path}")
    parent = document.pop("extends", None)
    return document if parent is None else _merged(_read(str(parent), (*below, name)), document)


def _merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The document with single values replaced by ``changes``, in tables too."""
    merged = dict(document)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _set(document: dict[str, Any], key: str, value: Any, item: str) -> None:
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise FlasharError(f"--set {item}: {parent} is not a table")
    place[last] = value


def _value(key: str, text: str) -> Any:
    """What follows ``KEY=``: a TOML value, ``null``, or the text itself."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return None if text == "null" else text
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise FlasharError(f"--set {key}={shown(text)}: {error}; expected one TOML value") from None
    # A line break in the text may have added further keys.
    return document["value"] if len(document) == 1 else text


def _refuse_unknown(document: dict[str, Any], kind: type[BaseModel], where: str) -> None:
    for key, value in document.items():
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key[:MOST_SHOWN], kind.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(kind.model_fields)}"
            raise FlasharError(f"recipe {where} has unknown key {shown(key)}; {hint}")
        inner = kind.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, dict):
            _refuse_unknown(value, inner, where)
