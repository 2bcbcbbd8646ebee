"""The same run in one, two and four processes, as whole copies and as shards, and resumed by another number of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from flashar_cli.config.recipe import EngineSettings, Stage, StageSettings
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.layers import Block
from flashar_cli.training.loop import batch_losses
from flashar_cli.training.losses import losses_of
from flashar_cli.training.parallel import Parallel, shard
from tests.tiny_models import build_model, random_config
from tests.training.test_loop import TWO_STAGES, make_run

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # relative


def start(out: Path, size: int, strategy: str = "auto", stop: int = -1) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.training.parallel_worker", str(out), strategy, str(stop)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [subprocess.Popen(command, cwd=ROOT, env=environment | rank, stderr=subprocess.PIPE) for rank in ranks]


def run(out: Path, *arguments: object, **options: object) -> dict | None:
    processes = start(out, *arguments, **options)  # type: ignore[arg-type]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), "".join(errors)
    result = out / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    result = run(tmp_path_factory.mktemp("alone"), 1)
    assert result is not None
    assert [record["step"] for record in result["validations"]] == [0, 20, 45, 50]
    assert result["validations"][-1]["fused"] < 0.97 * result["validations"][0]["fused"]
    return result


def assert_same(result: dict | None, expected: dict, first: int = 0) -> None:
    assert result is not None
    for record, wanted in zip(result["validations"], expected["validations"][first:], strict=True):
        for name in ("raster", "fused", "horizontal", "vertical", "gate_mean"):
            assert record[name] == pytest.approx(wanted[name], rel=TOLERANCE), (record["step"], name)
    assert result["weight_norm"] == pytest.approx(expected["weight_norm"], rel=TOLERANCE)


FOUR = pytest.param(4, "ddp", marks=pytest.mark.slow)


@pytest.mark.parametrize(("size", "strategy"), ((2, "ddp"), FOUR, (2, "fsdp")))
def test_several_processes_learn_what_one_does(tmp_path, alone, size, strategy):
    assert_same(run(tmp_path, size, strategy), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), (((2, "ddp"), (1, "auto")), ((1, "auto"), (2, "fsdp"))))
def test_another_number_of_processes_resumes(tmp_path, alone, before, after):
    # SIGTERM reaches one process only, and all of them save and leave together.
    assert run(tmp_path, *before, stop=32) is None
    assert_same(run(tmp_path, *after), alone, first=2)


def test_fsdp_finds_the_tensors_of_what_a_forward_returns():
    """Its hooks in PyTorch 2.11 find tensors only in pytrees, which dataclasses are not."""
    model = build_model(random_config(3, 5))
    order, tokens = model.config.order_grid.diagonal(), torch.zeros(1, 15, dtype=torch.int64)
    conditions = Conditions(labels=torch.zeros(1, dtype=torch.int64))
    prediction = model(tokens, conditions, order)
    read = partial(losses_of, model, tokens_BN=tokens, settings=StageSettings())
    found = tree_leaves((prediction, model(tokens, conditions, order, read=read)))
    assert sum(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in found) == 5
    assert any(leaf is prediction.targets.has_vertical for leaf in found)


@pytest.fixture
def group_of_one():
    """A process group of this process alone, with the wrappers, casts and shards of several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def mixed_step(folder: Path, strategy: str, stage: Stage) -> tuple[set[torch.dtype], list[float], float]:
    """Dtypes at the inputs of blocks, loss terms, and the norm of the gradients of one step in bfloat16."""
    run = make_run(folder, TWO_STAGES, corruption=0.0, dropout=0.0)
    run.dtype = torch.bfloat16
    for name, part in run.model.named_children():
        part.requires_grad_(name == "branch" or stage.settings.backbone_lr_factor > 0)
    parallel = Parallel(run.model, EngineSettings(), run.dtype)
    if strategy == "fsdp":
        shard(run.model, run.dtype)
    elif strategy == "ddp":
        parallel._forward = torch.nn.parallel.DistributedDataParallel(run.model)
    seen: set[torch.dtype] = set()
    blocks = [module for module in run.model.modules() if isinstance(module, Block)]
    for module in (*blocks, run.model.backbone.norm, run.model.branch.norm, run.model.branch.head):
        module.register_forward_pre_hook(lambda module, given: seen.add(given[0].dtype))
    losses = batch_losses(run, parallel, stage.settings, np.arange(6), np.zeros(6, np.int64))
    losses.total.backward()
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), float("inf"))
    terms = [float(value.detach()) for value in losses[:8] if value is not None]
    return seen, terms, float(norm.full_tensor() if strategy == "fsdp" else norm)


@pytest.mark.parametrize("stage", TWO_STAGES, ids=lambda stage: stage.name)
def test_the_residual_stream_has_one_precision_under_every_strategy(tmp_path, group_of_one, stage):
    alone, copies, shards = (mixed_step(tmp_path / name, name, stage) for name in ("single", "ddp", "fsdp"))
    assert alone[0] == copies[0] == shards[0] == {torch.bfloat16}
    for other in (copies, shards):
        # All round weights to bfloat16, but at other points.
        assert other[1] == pytest.approx(alone[1], rel=1e-5)
        assert other[2] == pytest.approx(alone[2], rel=2e-3)
