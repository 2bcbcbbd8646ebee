"""`--nproc` and SIGTERM, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL_RUN = ("--data", "shapes:48", "--batch-size", "8", "--set", "data.num_validation=16")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path_factory.getbasetemp() / "home"))


def adapt(out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "flashar_cli", "adapt", "llamagen-tiny", *SMALL_RUN, "--out", str(out)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_steps(out: Path, num_steps: int) -> None:
    metrics = out.with_name(out.name + ".run") / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not metrics.exists() or metrics.read_text().count('"kind": "step"') < num_steps:
        assert time.monotonic() < deadline, "the run took no steps"
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_saves_and_two_processes_resume(tmp_path):
    first = adapt(tmp_path / "out", "--steps", "12", "--nproc", "2")
    wait_for_steps(tmp_path / "out", 3)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=90)
    assert first.returncode == 0 and "resume with: flashar adapt llamagen-tiny" in error, error
    assert not (tmp_path / "out").exists() and error.count("stopped by SIGTERM") == 1

    second = adapt(tmp_path / "out", "--steps", "12", "--nproc", "2", "--set", "engine.micro_batch_size=4")
    out, error = second.communicate(timeout=120)
    assert second.returncode == 0 and "resuming from" in error, error
    assert out.count("wrote ") == 1
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "out" / "model.safetensors").values())


def test_a_killed_process_ends_the_others(tmp_path):
    run = adapt(tmp_path / "out", "--steps", "400", "--nproc", "2")
    wait_for_steps(tmp_path / "out", 3)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    _, error = run.communicate(timeout=90)
    assert run.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 was ended by signal 9 (SIGKILL)" in error and "Traceback" not in error, error


def test_an_error_of_all_processes_is_told_once(tmp_path):
    run = adapt(tmp_path / "out", "--branch-layer", "99", "--nproc", "2")
    _, error = run.communicate(timeout=90)
    assert run.returncode == 2 and error.count("error:") == 1 and "--branch-layer is 99" in error, error
