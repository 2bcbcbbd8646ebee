"""Adaptations of one base: whole in one process, and by two of which each holds half; in full and by adapters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import read_config
from flashar_cli.files.lazy import lazily
from flashar_cli.files.shards import MODEL_FILE, write_weights
from flashar_cli.tokenizers import build_tokenizer
from tests.adaptation.sharded_worker import adapted
from tests.tiny_models import build_model, random_config

ROOT = Path(__file__).parents[2]
BY_ADAPTERS = ("lora.rank=4", "lora.merge=false", "optim.ema_decay=0.5")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A random base in bfloat16 whose weights are in several files."""
    config, folder = random_config(branch=False), tmp_path / "base"
    assert config.tokenizer is not None
    torch.manual_seed(0)
    state = build_model(config).bfloat16().state_dict()
    checkpoint.save(folder, config, state, build_tokenizer(config.tokenizer).state_dict())
    (folder / MODEL_FILE).unlink()
    write_weights(lazily(state), folder, MODEL_FILE, "40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def in_two_processes(base: Path, out: Path, dtype: str, *settings: str) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = (str(base), str(out), dtype, "engine.strategy=fsdp", *settings)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.adaptation.sharded_worker", *values],
            cwd=ROOT,
            env=environment | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), "".join(errors)
    return json.loads(Path(f"{out}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("settings", (pytest.param((), id="full"), pytest.param(BY_ADAPTERS, id="adapters")))
def test_two_processes_with_a_half_each_learn_what_one_does(tmp_path, base, settings):
    alone = adapted(base, tmp_path / "alone", torch.float32, settings)
    halves = in_two_processes(base, tmp_path / "halves", "float32", *settings)
    assert halves["losses"] == pytest.approx(alone["losses"], rel=1e-5) and len(alone["losses"]) == 4
    for ours, wanted in zip(halves["validations"], alone["validations"], strict=True):
        for name in ("raster", "fused", "horizontal", "vertical", "gate_mean"):
            assert ours[name] == pytest.approx(wanted[name], rel=1e-5), (wanted["step"], name)
    files = ["model.safetensors", "samples-stage2.png", *(["adapter/adapter_model.safetensors"] if settings else [])]
    for file in files:
        assert (tmp_path / "halves" / file).exists(), file
        if file.endswith(".png"):
            continue
        # The weights of the checkpoint are in bfloat16, as those of its base.
        got, expected = (load_file(tmp_path / name / file) for name in ("halves", "alone"))
        tolerance = TOLERANCE if file.startswith("adapter") else {"rtol": 2**-7, "atol": 1e-6}
        torch.testing.assert_close(got, expected, **tolerance)
    # Of every tensor a half, and once while it is read another; nothing is ever whole but the gate's first matrix.
    whole, gate = alone["held"][0][0], 4 * 2 * 64 * 64
    for weights, peak in halves["held"]:
        assert weights == pytest.approx(whole / 2, rel=0.01) and peak < whole / 2 + 2 * gate
    assert alone["held"][0][1] > 0.5 * whole  # the profiler sees the branch of the unsharded model


@pytest.mark.parametrize("sharded", (False, pytest.param(True, marks=pytest.mark.slow)))
def test_a_frozen_base_stays_in_bfloat16_and_as_it_was(tmp_path, base, sharded):
    out = tmp_path / "out"
    if sharded:
        found = in_two_processes(base, out, "bfloat16", *BY_ADAPTERS)
    else:
        found = adapted(base, out, torch.bfloat16, BY_ADAPTERS)
    num_base = read_config(base).num_weights
    num_new = read_config(out).num_weights - num_base + sum(t.numel() for t in adapters_of(out).values())
    assert sum(weights for weights, _ in found["held"]) == 2 * num_base + 4 * num_new
    before, after = (file_tensors(folder) for folder in (base, out))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert found["validations"][-1]["fused"] < found["validations"][0]["fused"]
    assert (out / "samples-stage2.png").exists() and not (tmp_path / "out.run").exists()


def file_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}


def adapters_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")
