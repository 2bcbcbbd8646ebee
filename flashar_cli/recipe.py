"""What a run is: the content of a recipe file, with every default in one place."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from flashar_cli import bounds
from flashar_cli.config import Config, GateKind, Text, explain
from flashar_cli.errors import FlasharError
from flashar_cli.reading import read_toml
from flashar_cli.text import MOST_SHOWN, shown

RecipeT = TypeVar("RecipeT", bound=Config)


class StageSettings(Config):
    """One stage of training: how fast, and which loss terms."""

    lr: Annotated[float, bounds.LEARNING_RATE] = Field(
        2e-5, description="peak learning rate of branch and gate; of all weights where there is none"
    )
    backbone_lr_factor: Annotated[float, bounds.WEIGHT] = Field(
        1.0, description="backbone learning rate / lr; 0 freezes prefix and backbone"
    )
    warmup_steps: Annotated[int, bounds.WARMUP] = Field(0, description="steps of linear warm-up, then cosine")
    final_lr_factor: Annotated[float, bounds.SHARE] = Field(
        0.0, description="learning rate at the end of the cosine / lr"
    )
    cosine_steps: Annotated[int, bounds.STEPS] | None = Field(
        None, description="length of the cosine; null: the stage's"
    )
    vertical_weight: Annotated[float, bounds.WEIGHT] = Field(
        0.05, description="cross-entropy of the vertical prediction"
    )
    horizontal_weight: Annotated[float, bounds.WEIGHT] = Field(
        0.0, description="cross-entropy of the horizontal prediction"
    )
    distill_weight: Annotated[float, bounds.WEIGHT] = Field(
        0.0, description="KL from the frozen base's raster prediction to the vertical one"
    )
    distill_temperature: Annotated[float, bounds.SOFTNESS] = 2.0
    gate_entropy_weight: Annotated[float, bounds.WEIGHT] = Field(0.0, description="rewards gates that stay undecided")

    @model_validator(mode="after")
    def _check_distillation(self) -> StageSettings:
        if self.distill_weight and self.backbone_lr_factor:
            raise ValueError("distill_weight needs a frozen backbone to distill from: backbone_lr_factor 0")
        return self


class OptimSettings(Config):
    """Batches and AdamW."""

    batch_size: Annotated[int, bounds.BATCH] = Field(
        512, description="pictures an optimizer step, all micro-batches together"
    )
    beta1: Annotated[float, bounds.RATE] = 0.9
    beta2: Annotated[float, bounds.RATE] = 0.95
    weight_decay: Annotated[float, bounds.WEIGHT] = Field(
        0.05, description="of matrices; vectors and embeddings have none"
    )
    grad_clip: Annotated[float, bounds.WEIGHT] = Field(1.0, description="largest gradient norm; 0: off")
    class_drop: Annotated[float, bounds.SHARE] = Field(
        0.1, description="pictures trained without their condition, for guidance"
    )
    corruption: Annotated[float, bounds.SHARE] = Field(
        0.0, description="context codes replaced by random ones; targets stay"
    )
    token_drop: Annotated[float, bounds.RATE] = Field(0.0, description="context tokens whose embedding is zeroed")
    dropout: Annotated[float, bounds.RATE] = Field(0.0, description="of residual branches")
    ema_decay: Annotated[float, bounds.RATE] = Field(
        0.0, description="of averaged weights, which become the model; 0: off"
    )


class EngineSettings(Config):
    """How a step is computed. None of this changes what is learned, rounding aside: a resumed run may change it."""

    micro_batch_size: Annotated[int, bounds.BATCH] = Field(32, description="pictures a forward of one process at most")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="of several processes: whole copies, or shards; auto: shards where copies don't fit"
    )
    attention: Literal["sdpa", "flex"] = Field("sdpa", description="flex: FlexAttention, which skips masked blocks")
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass: less memory")
    compile: bool = Field(False, description="torch.compile the blocks: a wait at the start, then faster steps")


class BranchSettings(Config):
    """The branch to add."""

    layer: Annotated[int, bounds.LAYER] | None = Field(
        None, description="m; null: what a probe recommends, else L - depth"
    )
    depth: Annotated[int, bounds.LAYERS] = 1
    gate: GateKind = "hidden"


class DataSettings(Config):
    """What to train on."""

    source: Text | None = Field(
        None, description="as --data: shapes[:N], a folder, .parquet, .tar, .jsonl, code shards, a `datasets` id"
    )
    split: Text | None = Field(None, description="of a `datasets` id or Parquet files; null: train, or all files")
    image_column: Text = "image"
    label_column: Text = "label"
    caption_column: Text = "caption"
    augment: Text = Field("center", description="views of a picture, one an epoch: center, center-flip or ten-crop")
    crop_ratio: Annotated[float, bounds.CROP_RATIO] = Field(
        1.1, description="of ten-crop: size of the picture that is cut / size of a crop"
    )
    max_bad: Text = Field("1%", description="unreadable pictures to skip at most: a percentage or a count")
    subset: Annotated[int, bounds.IMAGES] | None = Field(80_000, description="pictures, class by class; null: all")
    num_validation: Annotated[int, bounds.IMAGES] = Field(
        512, description="pictures of the subset that are kept for validation"
    )


class AdaptRecipe(Config):
    """Two-stage adaptation (paper: section 4). Stage 1 trains branch and gate, stage 2 everything."""

    steps: Annotated[int, bounds.STAGED_STEPS] = Field(10_000, description="optimizer steps of both stages together")
    stage1_fraction: Annotated[float, bounds.PART] = Field(0.2, description="share of the steps that stage 1 takes")
    stage1: StageSettings = StageSettings(backbone_lr_factor=0.0, distill_weight=0.2)
    stage2: StageSettings = StageSettings(backbone_lr_factor=0.2)
    branch: BranchSettings = BranchSettings()
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    engine: EngineSettings = EngineSettings()
    save_every: Annotated[int, bounds.STEPS] = Field(500, description="steps between saves of the training state")
    keep_states: Annotated[int, bounds.REPEATS] = Field(2, description="training states kept; the oldest go")
    validate_every: Annotated[int, bounds.STEPS] = Field(1000, description="steps between validations inside a stage")

    @property
    def stage_steps(self) -> dict[str, int]:
        """Steps of each stage by name."""
        first = max(1, round(self.steps * self.stage1_fraction))
        return {"stage1": first, "stage2": self.steps - first}


def recipes_dir() -> Path:
    """Where the shipped recipes are: inside the package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipes_dir().glob("*.toml"))


def load_recipe(
    name: str | None, overrides: list[str], kind: type[RecipeT], values: Mapping[str, Any] | None = None
) -> RecipeT:
    """A shipped recipe by name, or a TOML file; None: the defaults. ``overrides`` are ``stage1.lr=1e-4`` and so on;
    ``values``, by key, are set after them, as they are. A recipe with ``extends = NAME`` holds what differs from it.

    Raises FlasharError for an unknown recipe, file, key (with a suggestion) or value.
    """
    document = {} if name is None else _read(name)
    for item in overrides:
        _override(document, item)
    for key, value in (values or {}).items():
        _set(document, key, value, f"{key}={value}")
    _refuse_unknown(document, kind, name or "--set")
    try:
        return kind.model_validate(_with_defaults(document, kind))
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
    """``changes`` take the place of single values, in tables too."""
    merged = dict(document)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _override(document: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise FlasharError(f"--set {item}: expected KEY=VALUE, e.g. stage1.lr=1e-4")
    _set(document, key.strip(), _value(key.strip(), text), item)


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
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise FlasharError(f"--set {key}={shown(text)}: {error}; expected one TOML value") from None
    # A line break would let further keys in.
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


def _with_defaults(document: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Tables of a recipe change single values of the default table, they don't replace it."""
    merged = dict(document)
    for key, value in document.items():
        default = kind.model_fields[key].default
        if isinstance(value, dict) and isinstance(default, BaseModel):
            merged[key] = {**default.model_dump(), **_with_defaults(value, type(default))}
    return merged
