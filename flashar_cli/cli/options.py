"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_type_hints

import typer

from flashar_cli.cli import output
from flashar_cli.config import ModelConfig, Pruning, Sampling, validated
from flashar_cli.config.pruning_presets import choose_pruning
from flashar_cli.config.recipe import DATA_DEFAULTS, DataSettings
from flashar_cli.decoding.levels import get_level
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.inputs.text import shown
from flashar_cli.machine.world import current_world

if TYPE_CHECKING:
    import torch


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def number(allowed: bounds.Bounds, *, help: str, metavar: str | None = None) -> Any:
    """An option for numbers within bounds, named after its parameter. Others are refused before the command starts."""

    def check(option: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None:
            allowed.check(option.opts[0], value)
        return value

    return typer.Option(callback=check, metavar=metavar, help=help)


Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="A checkpoint directory or preset (`flashar ls`).")]
Base = Annotated[str | None, typer.Option(metavar="MODEL", help="The same as the positional MODEL.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory to write to.")]
Seed = Annotated[int, number(bounds.SEED, help="Every random choice follows from it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds, if flashar wrote all of it.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:I.")]
DtypeOption = Annotated[Dtype, typer.Option(help="auto: bfloat16 on CUDA, float32 on a CPU.")]
Quantize = Annotated[
    Literal["int8", "fp8"] | None,
    typer.Option(help="8-bit weights in blocks and heads (needs torchao: flashar[quant])."),
]
Subset = Annotated[int | None, number(bounds.IMAGES, help="Images to use, class by class, chosen by the seed.")]
Threads = Annotated[int | None, number(bounds.THREADS, help="CPU threads; default: PyTorch's choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Nproc = Annotated[
    int | None, number(bounds.PROCESSES, metavar="N", help="Processes on this machine, one a GPU; or use torchrun.")
]
BatchSize = Annotated[int, number(bounds.BATCH, help="Images at a time.")]
Optimisation = Annotated[
    str,
    typer.Option(
        callback=lambda name: get_level(name).name,
        help="eager; graph: CUDA graphs; compile: compiled blocks; packed: CPU, 2x memory.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and check everything, print it, and stop.")]


def known_decoder(name: str | None) -> str | None:
    """The callback of --decoder. Raises FlasharError for a name that is no decoder's, before anything is loaded."""
    if name is not None:
        from flashar_cli.decoding.decoders import get_decoder

        get_decoder(name)
    return name


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer reads it: each parameter whose type is a dataclass of options becomes one option a field."""
    hints: dict[str, Any] = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        options = [(name, hints[name], parameter.default)]
        if name in groups:
            inner = get_type_hints(groups[name], include_extras=True)
            options = [(field.name, inner[field.name], field.default) for field in fields(groups[name])]
        for own_name, kind, default in options:
            own = inspect.Parameter(own_name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            parameters.append(own)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _sampling_option(name: str) -> tuple[str, Any, Any]:
    """The option of one field of ``Sampling``, which keeps the checkpoint's value where it is not passed."""
    field = Sampling.model_fields[name]
    kind: Any = field.annotation
    text = f"{field.description} Default: the checkpoint's."
    allowed = next((each for each in field.metadata if isinstance(each, bounds.Bounds)), None)
    if allowed is None:
        metavar, parser = PARSED[name]
        return name, Annotated[Any | None, typer.Option(metavar=metavar, parser=parser, help=text)], None
    return name, Annotated[kind | None, number(allowed, help=text)], None


def _interval(text: str) -> tuple[float, float]:
    try:
        start, end = (float(part) for part in text.split(":"))
        Sampling(cfg_interval=(start, end))
    except ValueError:  # pydantic's is one too
        raise FlasharError(f"--cfg-interval is {text}; expected A:B with 0 <= A < B <= 1, e.g. 0:0.5") from None
    return start, end


def _schedule(text: str) -> str | tuple[float, ...]:
    try:
        found = text if text in ("constant", "linear") else tuple(float(part) for part in text.split(","))
        Sampling.model_validate({"cfg_schedule": found})
    except ValueError:
        raise FlasharError(
            f"--cfg-schedule is {shown(text)}; expected constant, linear, or a scale for each step, e.g. 1,1.5,2"
        ) from None
    return found


# Options that are no single number: what stands for their value in the help, and what reads it.
PARSED = {"cfg_interval": ("A:B", _interval), "cfg_schedule": ("NAME|S,S,..", _schedule)}
# The fields of Sampling as options.
SamplingOptions: Any = make_dataclass("SamplingOptions", map(_sampling_option, Sampling.model_fields), frozen=True)


def _pairs(text: str) -> tuple[tuple[int, float], ...]:
    """``9:0.4,10:0.5`` -> ((9, 0.4), (10, 0.5)). Raises FlasharError."""
    try:
        return tuple((int(scale), float(ratio)) for scale, ratio in (part.split(":") for part in text.split(",")))
    except ValueError:
        raise FlasharError(
            f"--fastvar-ratios is {shown(text)}; expected SCALE:SHARE, with commas between, e.g. 9:0.4,10:0.5"
        ) from None


def _layers(text: str) -> tuple[int, int]:
    """``3:27`` -> (3, 27). Raises FlasharError."""
    try:
        first, last = (int(part) for part in text.split(":"))
    except ValueError:
        raise FlasharError(f"--fastvar-layers is {shown(text)}; expected FIRST:LAST, e.g. 3:27") from None
    return first, last


@dataclass(frozen=True)
class FastVAR:
    """What the decoders fastvar and truncate of next-scale models leave out."""

    fastvar: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.toml", help="What fastvar and truncate leave out. Default: the checkpoint's."),
    ] = None
    fastvar_ratios: Annotated[
        Any | None,
        typer.Option(metavar="S:R,S:R", parser=_pairs, help="Share of the tokens of each scale that is dropped."),
    ] = None
    fastvar_layers: Annotated[
        Any | None, typer.Option(metavar="A:B", parser=_layers, help="First and last block that drop tokens.")
    ] = None
    fastvar_cached_scale: Annotated[
        int | None, number(bounds.SCALE_INDEX, help="Scale whose outputs stand in; default: before the first pruned.")
    ] = None
    fastvar_scales: Annotated[int | None, number(bounds.NUM_SCALES, help="Decode only so many scales of an image.")] = (
        None
    )

    def choose(self, config: ModelConfig) -> Pruning | None:
        """The settings for a model; None where nothing is asked for. Raises FlasharError."""
        first, last = self.fastvar_layers or (None, None)
        changes = {
            "ratios": self.fastvar_ratios,
            "first_layer": first,
            "last_layer": last,
            "cached_scale": self.fastvar_cached_scale,
            "num_scales": self.fastvar_scales,
        }
        return choose_pruning(getattr(config, "fastvar", None), self.fastvar, changes)


@dataclass(frozen=True)
class Machine:
    """Where a command computes, and how precisely."""

    device: Device = "auto"
    dtype: DtypeOption = "auto"
    threads: Threads = None

    def prepare(self) -> tuple[torch.device, torch.dtype]:
        """Sets up the process; the device and the dtype. Raises FlasharError for a device that is not there."""
        import torch

        from flashar_cli.machine.process import keep_freed_memory

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        keep_freed_memory()
        where = resolve_device(self.device)
        return where, resolve_dtype(self.dtype, where)


@dataclass(frozen=True)
class DataOptions:
    """How images are found. The defaults are those of recipes."""

    split: Annotated[
        str | None, typer.Option(help="Of a `datasets` id (default: train) or of Parquet files (default: all).")
    ] = DATA_DEFAULTS.split
    image_column: Annotated[str, typer.Option(metavar="NAME", help="Where a source keeps images.")] = (
        DATA_DEFAULTS.image_column
    )
    label_column: Annotated[str, typer.Option(metavar="NAME", help="Where it keeps classes.")] = (
        DATA_DEFAULTS.label_column
    )
    caption_column: Annotated[str, typer.Option(metavar="NAME", help="Where it keeps captions.")] = (
        DATA_DEFAULTS.caption_column
    )
    max_bad: Annotated[
        str, typer.Option(metavar="N|P%", help="Unreadable images to skip at most; more stop the run.")
    ] = DATA_DEFAULTS.max_bad

    def settings(self) -> DataSettings:
        """As a recipe holds them. Raises FlasharError for values that a recipe refuses."""
        return validated(vars(self), DataSettings, "what is said of --data", "possible")


def one_model(model: str | None, base: str | None) -> str | None:
    """MODEL or --base, which mean the same. Raises FlasharError where both are given and differ."""
    if model is not None and base is not None and model != base:
        raise FlasharError(f"MODEL is {model} and --base is {base}; pass one of them")
    return model if model is not None else base


def required_model(model: str | None, base: str | None) -> str:
    """As ``one_model``, for commands that need a model."""
    chosen = one_model(model, base)
    if chosen is None:
        raise FlasharError("no MODEL was passed; expected a checkpoint directory or a preset, e.g. llamagen-tiny")
    return chosen


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one; each of several processes takes its own. Raises FlasharError."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    world = current_world()
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or (kind == "cpu" and index):
        raise FlasharError(f"--device is {name}; expected auto, cpu, cuda or cuda:I")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise FlasharError(f"--device is {name}, but PyTorch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return torch.device(name)


def resolve_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 on a CPU."""
    import torch

    chosen = ("bfloat16" if device.type == "cuda" else "float32") if dtype == "auto" else dtype
    return cast("torch.dtype", getattr(torch, chosen))


def note_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Warns, before the work, where a CPU has no instructions for a dtype."""
    import torch

    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if device.type != "cpu" or short is None:
        return
    if not any(short in name and has for name, has in torch.cpu.get_capabilities().items()):
        named = str(dtype).removeprefix("torch.")
        output.note(f"--dtype {named}: this CPU has no instructions for it; expect it to be slow")
