"""Records and a report of an invented run of two stages, which may have been resumed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from flashar_cli.adaptation.report import AdaptReport
from flashar_cli.config.recipe import AdaptRecipe
from flashar_cli.machine.environment import Hardware, Software
from flashar_cli.training.metrics import Record
from tests.tiny_models import random_config

BATCH_SIZE, STEP_S, PAUSE_S = 8, 0.5, 1000.0
STAGE_STEPS = {"stage1": 4, "stage2": 6}
PROBE: dict[str, Any] = {
    "layers": [{"layer": m, "right_loss": 3.0 - m, "lower_loss": 4.0 - m} for m in range(3)],
    "recommended_layer": 1,
    "num_train": 40,
    "mask": "raster",
    "head": "full",
}


def run_records(resumed_at: int | None = None) -> list[Record]:
    """The records in ``metrics.jsonl``, half a second a step, with a long pause before step ``resumed_at``."""
    now, found = 100.0, []

    def add(kind: str, **values: Any) -> None:
        found.append({"kind": kind, **values, "wall_time": now, "peak_memory_bytes": 2**30})

    start = {
        "stage_steps": STAGE_STEPS,
        "batch_size": BATCH_SIZE,
        "flops_per_image": {"stage1": 10**9, "stage2": 2 * 10**9},
        "matmul_flops_per_s": 64e9,
        "num_processes": 1,
    }
    add("start", step=0, **start)
    add("validation", stage="start", step=0, **_losses(0), raster=2.0)
    for step in range(sum(STAGE_STEPS.values())):
        stage = "stage1" if step < STAGE_STEPS["stage1"] else "stage2"
        if step == resumed_at:
            now += PAUSE_S
            add("start", step=step, **start)
        now += STEP_S
        speed = {"lr": 1e-3, "images_per_s": BATCH_SIZE / STEP_S, "grad_norm": 1.0}
        add("step", stage=stage, step=step, **speed, total=4.0, **_losses(step))
        if step + 1 in (4, 10):
            add("validation", stage=stage, step=step + 1, **_losses(step + 1), raster=2.0 + 0.1 * step)
    return found


def adapt_report(**changes: Any) -> AdaptReport:
    """A report without probe and samples, with ``changes``."""
    config = random_config(3, 5)
    report = AdaptReport(
        base_name="tiny",
        base_sha256="ab" * 32,
        config=config,
        recipe=AdaptRecipe().model_dump(mode="json"),
        seed=7,
        dtype="float32",
        data_fingerprint="cd" * 32,
        num_train=40,
        num_validation=16,
        hardware=Hardware(cpu="a processor", num_cpu_cores=2, gpu=None),
        software=Software(flashar="0", torch="2", python="3", cuda=None, commit=None),
        records=run_records(),
        gates_HW=np.linspace(0, 1, 15).reshape(3, 5),
        sample_names=[f"class {k % 10}" for k in range(20)],
    )
    return dataclasses.replace(report, **changes)


def _losses(step: int) -> dict[str, float]:
    fused = 4.0 - 0.1 * step
    gate = {"gate_mean": 0.5 + 0.01 * step, "gate_std": 0.01 * step}
    return {"fused": fused, "horizontal": fused + 0.2, "vertical": fused + 0.5, **gate}
