"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli import bounds
from flashar_cli.cli import output
from flashar_cli.errors import FlasharError
from flashar_cli.world import current_world

if TYPE_CHECKING:
    import torch


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class DecoderName(StrEnum):
    raster = "raster"
    flashar = "flashar"


class OptimisationName(StrEnum):
    eager = "eager"
    graph = "graph"
    compile = "compile"
    packed = "packed"


class QuantizeName(StrEnum):
    int8 = "int8"
    fp8 = "fp8"


def number(name: str, allowed: bounds.Bounds, *, help: str, metavar: str | None = None) -> Any:
    """An option for numbers within bounds. Others are refused before the command starts."""

    def check(value: float | None) -> float | None:
        if value is not None:
            allowed.check(name, value)
        return value

    return typer.Option(name, callback=check, metavar=metavar, help=help)


Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A checkpoint directory or a preset (`flashar ls`).")
]
Base = Annotated[str | None, typer.Option("--base", metavar="MODEL", help="The same as the positional MODEL.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write to.")]
Seed = Annotated[int, number("--seed", bounds.SEED, help="Every random choice follows from it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds, if flashar wrote all of it.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:I.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="auto: bfloat16 on CUDA, float32 on a CPU.")]
Quantize = Annotated[
    QuantizeName | None,
    typer.Option("--quantize", help="8-bit weights in blocks and heads (needs torchao: flashar[quant])."),
]
Threads = Annotated[int | None, number("--threads", bounds.THREADS, help="CPU threads; default: PyTorch's choice.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DATA_HELP = "shapes[:N], a folder of pictures, .parquet or .tar files, a .jsonl manifest, a `datasets` id"
Split = Annotated[
    str | None, typer.Option("--split", help="Of a `datasets` id (default: train) or of Parquet files (default: all).")
]
ImageColumn = Annotated[str, typer.Option("--image-column", metavar="NAME", help="Where a source keeps pictures.")]
LabelColumn = Annotated[str, typer.Option("--label-column", metavar="NAME", help="Where it keeps classes.")]
CaptionColumn = Annotated[str, typer.Option("--caption-column", metavar="NAME", help="Where it keeps captions.")]
MaxBad = Annotated[
    str, typer.Option("--max-bad", metavar="N|P%", help="Unreadable pictures to skip at most; more stop the run.")
]
Nproc = Annotated[
    int | None,
    number("--nproc", bounds.PROCESSES, metavar="N", help="Processes on this machine, one a GPU; or use torchrun."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve and check everything, print it, and stop.")]


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
    """``auto`` is CUDA where there is one; of several processes each takes its own. Raises FlasharError for a device
    that is not there.
    """
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

    if dtype is Dtype.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        Dtype.float32: torch.float32,
        Dtype.bfloat16: torch.bfloat16,
        Dtype.float16: torch.float16,
    }[dtype]


def note_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Says so, before the work, where a CPU has no instructions for a dtype."""
    import torch

    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    if device.type != "cpu" or short is None:
        return
    if not any(short in name and has for name, has in torch.cpu.get_capabilities().items()):
        named = str(dtype).removeprefix("torch.")
        output.note(f"--dtype {named}: this CPU has no instructions for it; expect it to be slow")
