"""The same run in one, two and four processes, as whole copies and as shards, and resumed by another number of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("size", "strategy"), ((2, "ddp"), (4, "ddp"), (2, "fsdp")))
def test_several_processes_learn_what_one_does(tmp_path, alone, size, strategy):
    assert_same(run(tmp_path, size, strategy), alone)


@pytest.mark.parametrize(("before", "after"), (((2, "ddp"), (1, "auto")), ((1, "auto"), (2, "fsdp"))))
def test_another_number_of_processes_resumes(tmp_path, alone, before, after):
    # SIGTERM reaches one process only, and all of them save and leave together.
    assert run(tmp_path, *before, stop=32) is None
    assert_same(run(tmp_path, *after), alone, first=2)
