"""What the records of ``metrics.jsonl`` say (``training.metrics`` has their fields). All records of an adaptation have
``wall_time`` and ``peak_memory_bytes``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from flashar_cli.config import RasterConfig
from flashar_cli.config.recipe import NO_LORA, LoraSettings, Stage
from flashar_cli.errors import FlasharError
from flashar_cli.machine.peaks import peak_memory_bytes, peak_rss_bytes
from flashar_cli.machine.rates import matmul_flops_per_s
from flashar_cli.machine.world import current_world
from flashar_cli.training.flops import training_flops
from flashar_cli.training.metrics import Record

ADAPTED_LOSSES = ("fused", "diffusion")
VALIDATION_LOSSES = ("raster", *ADAPTED_LOSSES, "horizontal", "vertical")
VALIDATION_COLUMNS = (*VALIDATION_LOSSES, "gate_mean", "gate_std")


def validation_columns(validations: Sequence[Record]) -> list[str]:
    """Those that any of them has."""
    return [name for name in VALIDATION_COLUMNS if any(name in record for record in validations)]


def stamped(record: Record, device: torch.device) -> Record:
    """The record with the time and the peak memory so far: of the device, or of the process on a CPU."""
    memory = peak_memory_bytes(device)
    return record | {"wall_time": time.time(), "peak_memory_bytes": peak_rss_bytes() if memory is None else memory}


def start_record(
    config: RasterConfig,
    stages: Sequence[Stage],
    batch_size: int,
    step: int,
    device: torch.device,
    dtype: torch.dtype,
    lora: LoraSettings = NO_LORA,
) -> Record:
    """The start record of a run from ``step`` on. Measures the matrix-product rate of this machine in a second."""
    return {
        "step": step,
        "stage_steps": {stage.name: stage.steps for stage in stages},
        "batch_size": batch_size,
        "flops_per_image": {stage.name: training_flops(config, stage.settings, lora) for stage in stages},
        "matmul_flops_per_s": matmul_flops_per_s(device, dtype),
        "num_processes": current_world().size,
    }


def check_run(records: Sequence[Record], path: Path) -> None:
    """Raises FlasharError where the records of a run to be resumed lack fields that its report needs."""
    starts, steps, validations = ([r for r in records if r["kind"] == kind] for kind in ("start", "step", "validation"))
    stages = set(starts[-1]["stage_steps"]) & set(starts[-1]["flops_per_image"]) if starts else set()
    problem = None
    if not starts or records[0] is not starts[0]:
        problem = "doesn't begin with the start of the run"
    elif not all(record.get("wall_time") and "peak_memory_bytes" in record for record in records):
        problem = "has records without wall_time or peak_memory_bytes"
    elif any(record["stage"] not in stages for record in steps):
        problem = f"has steps of other stages than {', '.join(sorted(stages))}"
    elif not validations or any(
        "raster" not in record or (index and adapted_loss(record) is None) for index, record in enumerate(validations)
    ):
        problem = "lacks the losses raster, or fused or diffusion, of a validation"
    if problem is not None:
        raise FlasharError(f"{path} {problem}; restore it, or delete {path.parent} to start anew")


def adapted_loss(record: Record) -> tuple[str, float] | None:
    """The name and value of a validation's loss that an adaptation is for; None where it has none."""
    return next(((name, record[name]) for name in ADAPTED_LOSSES if name in record), None)


def training_s(records: Sequence[Record]) -> float:
    """Seconds that the run took, without the pauses between interruption and resumption."""
    pairs = itertools.pairwise(records)
    return sum(after["wall_time"] - before["wall_time"] for before, after in pairs if after["kind"] != "start")


def flops_per_s(start: Record, step: Record) -> float:
    """Achieved operations of training per second."""
    return float(step["images_per_s"] * start["flops_per_image"][step["stage"]])


def flops_text(rate: float) -> str:
    """In TFLOP/s, or GFLOP/s below one of those."""
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def peak_share(start: Record, step: Record) -> float:
    """Achieved operations / the measured matrix-product rate of all processes."""
    return flops_per_s(start, step) / (start["matmul_flops_per_s"] * start["num_processes"])


def remaining_s(start: Record, step: Record) -> float:
    """Seconds of the remaining optimizer steps at the present rate of operations."""
    end, done, total = 0, step["step"] + 1, 0.0
    for name, steps in start["stage_steps"].items():
        end += steps
        total += min(steps, max(0, end - done)) * start["batch_size"] * start["flops_per_image"][name]
    return total / flops_per_s(start, step)
