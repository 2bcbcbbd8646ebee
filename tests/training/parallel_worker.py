"""One process of a training run that tests start several of: python -m tests.training.parallel_worker OUT STRATEGY STOP

Trains a small model 50 steps in global batches of 8, and writes its validation losses, unrounded, to OUT/result.json.
STOP is a step at which the last process gets SIGTERM, -1 for none.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import torch

from flashar_cli.checkpoints.sharded import weights_of
from flashar_cli.config import BranchConfig, default_gate_dim
from flashar_cli.config.recipe import EngineSettings, OptimSettings, Stage, StageSettings
from flashar_cli.machine.processes import process_group
from flashar_cli.training.loop import TrainingRun, run_stages
from flashar_cli.training.signals import Terminated
from flashar_cli.training.state import TrainingState
from tests.tiny_models import build_model, random_config
from tests.training.test_loop import drawn_set

STAGES = [
    Stage("stage1", 20, StageSettings(lr=3e-3, backbone_lr_factor=0.0, distill_weight=0.2)),
    Stage("stage2", 30, StageSettings(lr=3e-3, backbone_lr_factor=0.2)),
]


def main() -> None:
    out, strategy, stop = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    model = build_model(random_config(3, 5, branch=False, tokenizer=False))
    model.add_branch(BranchConfig(layer=1, gate="hidden", gate_dim=default_gate_dim("hidden", 32, 32)), 0)
    data = drawn_set(73, 3, 5)
    with process_group(torch.device("cpu")) as world:
        validations: list[dict] = []

        def report(kind: str, record: dict) -> None:
            if kind == "validation":
                validations.append(record)
            elif record["step"] == stop and world.rank == world.size - 1:
                signal.raise_signal(signal.SIGTERM)

        run = TrainingRun(
            model=model,
            train=data.take(slice(0, 60)),
            validation=data.take(slice(60, 73)),
            stages=STAGES,
            optim=OptimSettings(batch_size=8, corruption=0.1, ema_decay=0.9),
            engine=EngineSettings(strategy=strategy, micro_batch_size=3),  # type: ignore[arg-type]
            seed=0,
            dtype=torch.float32,
            state=TrainingState(out, {}),
            save_every=15,
            validate_every=25,
            report=report,
            stage_done=lambda name: None,
        )
        try:
            run_stages(run)
        except Terminated:
            return
        weights = [each.read().double() for each in weights_of(model, torch.float32).values()]
        if world.is_main:
            norm = sum(float(tensor.square().sum()) for tensor in weights) ** 0.5
            (out / "result.json").write_text(json.dumps({"validations": validations, "weight_norm": norm}))


if __name__ == "__main__":
    main()
