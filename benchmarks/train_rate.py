"""Speed and memory of adaptation steps: python benchmarks/train_rate.py --model llamagen-xl --out FILE

Random weights, random tokens, stage 2 (everything is trained). Each arm (attention back-end, compiled or not, images a
forward) times a few optimizer steps after a warm-up: images/s, operations per second as a share of a matrix product
measured in the same run, and peak memory beside the estimate of `adapt --dry-run`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashar_cli.adaptation.job import choose_branch
from flashar_cli.benchmarking.subject import config_of, random_model
from flashar_cli.config import ClassPrefix, RasterConfig
from flashar_cli.config.recipe import BranchSettings, EngineSettings, OptimSettings, Stage, StageSettings
from flashar_cli.data.conditions.by_class import Labels
from flashar_cli.data.tokens import TokenSet
from flashar_cli.files.writing import atomic_file
from flashar_cli.machine.environment import hardware, software
from flashar_cli.machine.peaks import peak_memory_bytes, reset_peak_memory
from flashar_cli.machine.rates import matmul_flops_per_s
from flashar_cli.training.flops import training_flops
from flashar_cli.training.loop import TrainingRun, run_stages
from flashar_cli.training.memory import estimate_memory
from flashar_cli.training.state import TrainingState

WARMUP_STEPS = 3


class Unsaved(TrainingState):
    """Training state that stays in memory: writing gigabytes to disk is not measured."""

    def save(self, *arguments: Any) -> None:
        return


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="speed and memory of adaptation steps")
    parser.add_argument("--model", default="llamagen-xl", help="a preset or a checkpoint, for its shape alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--micro-batch-sizes", default="16,32")
    parser.add_argument("--attention", default="sdpa,flex")
    parser.add_argument("--compile", default="false,true")
    parser.add_argument("--steps", type=int, default=8, help="timed, after three that are not")
    parser.add_argument("--out", type=Path, required=True, help="JSON; written again after every arm")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    config = config_of(args.model)
    compiled_or_not = [word == "true" for word in args.compile.split(",")]
    arms = itertools.product(args.attention.split(","), compiled_or_not, args.micro_batch_sizes.split(","))
    peak = matmul_flops_per_s(device, dtype)
    document: dict[str, Any] = {
        "model": args.model,
        "dtype": args.dtype,
        "hardware": hardware(device).model_dump(),
        "software": software().model_dump(),
        "matmul_flops_per_s": peak,
        "arms": [],
    }
    for attention, compiled, size in arms:
        engine = EngineSettings(attention=attention, compile=compiled, micro_batch_size=int(size))
        arm = {"attention": attention, "compile": compiled, "micro_batch_size": int(size)}
        try:
            arm |= measure(config, engine, args.steps, device, dtype, peak)
        except torch.OutOfMemoryError:
            arm["out_of_memory"] = True
        document["arms"].append(arm)
        print(json.dumps(arm), file=sys.stderr, flush=True)
        with atomic_file(args.out) as file:
            file.write((json.dumps(document, indent=2) + "\n").encode())
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure(
    config: RasterConfig, engine: EngineSettings, steps: int, device: torch.device, dtype: torch.dtype, peak: float
) -> dict[str, Any]:
    """One arm: a step is one forward and backward of ``micro_batch_size`` images with its optimizer step."""
    branch = choose_branch(BranchSettings(), None, config)
    model = random_model(config, device, torch.float32, seed=0)
    model.add_branch(branch, 0)
    settings, size = StageSettings(lr=1e-5), engine.micro_batch_size
    times: list[float] = []

    def note_time(kind: str, record: dict[str, Any]) -> None:
        if kind == "step":
            times.append(time.perf_counter())  # the losses were read, so the device has finished the step

    reset_peak_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        run_stages(
            TrainingRun(
                model=model,
                train=random_tokens(config, 4 * size),
                validation=random_tokens(config, 2),
                stages=[Stage("stage2", WARMUP_STEPS + steps, settings)],
                optim=OptimSettings(batch_size=size),
                engine=engine,
                seed=0,
                dtype=dtype,
                state=Unsaved(Path(folder), {}),
                save_every=10**9,
                validate_every=10**9,
                report=note_time,
                stage_done=lambda name: None,
            )
        )
    seconds = [after - before for before, after in itertools.pairwise(times[WARMUP_STEPS - 1 :])]
    rate = size / statistics.median(seconds)
    estimate = estimate_memory(model.config, engine, size, 1, 2**63, dtype)
    measured = peak_memory_bytes(device)
    return {
        "step_s": seconds,
        "images_per_s": rate,
        "share_of_matmul": rate * training_flops(model.config, settings) / peak,
        "peak_memory_bytes": measured,
        "estimated_memory_bytes": estimate.total_bytes,
        "estimate_to_measured": None if measured is None else estimate.total_bytes / measured,
    }


def random_tokens(config: RasterConfig, count: int) -> TokenSet:
    """Images of noise: the work is the same."""
    assert isinstance(config.prefix, ClassPrefix)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.backbone.vocab_size, (count, config.grid.height, config.grid.width), np.int32)
    ids = np.array([f"random-{index}" for index in range(count)])
    return TokenSet(tokens, ids, Labels(rng.integers(0, config.prefix.num_classes, count)))


if __name__ == "__main__":
    main()
