"""What a machine of 8 GiB has no room for is refused before it is built."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LARGE = {"dim": 65536, "num_layers": 800, "num_heads": 512, "num_kv_heads": 512, "ffn_dim": 131072, "head_dim": 128}


@pytest.fixture(autouse=True)
def eight_gib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flashar_cli.machine.memory.free_bytes", lambda device=None: 2**33)
    monkeypatch.setattr("flashar_cli.adaptation.job.free_bytes", lambda device=None: 2**33)
    monkeypatch.setattr("flashar_cli.machine.memory.free_disk_bytes", lambda path: 2**33)
    monkeypatch.setattr("flashar_cli.cli.launch._start", None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("generate", "--num-images", 2**31), "writing 2147483648 images (--num-images) needs"),
        (("generate", "--num-images", 2**28, "--npz", "x.npz"), "GiB of disk for x.npz.part are free"),
        (("generate", "--num-images", 2**20, "--batch-size", 2**19), "a batch of 524288 images (--batch-size) needs"),
        (("encode", "--data", "shapes:100000", "--batch-size", 2**20, "--out", "out"), "a batch of 100000 images"),
        (("encode", "--data", "shapes:2000000000", "--out", "out"), "--data shapes:2000000000 needs"),
        (("encode", "--data", "shapes:4", "--out", "out", "--nproc", 1000), "--nproc 1000 needs 293.0 GiB"),
        (("probe", "--data", "shapes:4", "--head", "low-rank", "--rank", 131072, "--out", "out"), "6 low-rank probes"),
        (
            ("adapt", "--data", "shapes:4", "--batch-size", 2**20, "--set", "engine.micro_batch_size=1048576"),
            "training 1048576 images at a time (engine.micro_batch_size) needs",
        ),
        (("bench", "--batch-sizes", 2**20), "--batch-sizes has 1048576, which needs about"),
    ),
)
def test_work_without_room(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch, arguments, words
) -> None:
    command, *options = arguments
    monkeypatch.setattr("flashar_cli.benchmarking.plan.free_bytes", lambda device: 2**33)
    if command == "probe":
        monkeypatch.setattr("flashar_cli.machine.memory.free_bytes", lambda device=None: 2**28)
    model = write_tiny_checkpoint(branch=command not in ("adapt", "probe"))
    done = run_cli(command, model, *options)
    line = done.err.splitlines()[-1]
    assert done.code == 2 and words in line and "GiB" in line, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.parametrize(
    "arguments", (("generate", "--out", "out"), ("bench", "--random-weights"), ("adapt", "--data", "shapes:4"))
)
def test_a_model_without_room(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path, arguments
) -> None:
    model = write_tiny_checkpoint(branch=False)
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["backbone"] |= LARGE
    path.write_text(json.dumps(config))
    begun = time.process_time()
    done = run_cli(arguments[0], model, *arguments[1:])
    # By hand: 4 D^2 of attention and 3 D F of the feed-forward, 800 times, 4 bytes each.
    gib = 800 * (4 * 65536**2 + 3 * 65536 * 131072) * 4 / 2**30
    assert done.code == 2 and " GiB; 8.0 GiB of memory are free" in done.err, done.err
    assert float(done.err.split(" needs ")[1].split(" GiB")[0]) == pytest.approx(gib, rel=0.01)
    assert time.process_time() - begun < 3, "nothing of it was built"
