"""Time by kernel: what is whose own, what is idle, and a profile of a real decode on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.profile_decode import Span, summarise

ROOT = Path(__file__).parents[2]


def test_gaps_and_calls() -> None:
    profile = summarise([Span("a", 0, 10), Span("b", 15, 35), Span("a", 40, 50)])
    assert [(each.name, each.calls) for each in profile.kernels] == [("a", 2), ("b", 1)]
    assert [each.share for each in profile.kernels] == pytest.approx([0.5, 0.5])
    assert profile.span_s == pytest.approx(50e-9) and profile.busy_s == pytest.approx(40e-9)
    assert profile.idle_share == pytest.approx(0.2)
    assert (profile.num_gaps, profile.num_calls) == (2, 3) and profile.longest_gap_s == pytest.approx(5e-9)


def test_an_operator_that_calls_others_keeps_what_they_leave() -> None:
    profile = summarise(
        [Span("inner", 20, 50), Span("outer", 0, 100), Span("innermost", 30, 40), Span("inner", 60, 70)]
    )
    assert {each.name: each.total_s for each in profile.kernels} == pytest.approx(
        {"outer": 60e-9, "inner": 30e-9, "innermost": 10e-9}
    )
    assert profile.idle_share == 0 and profile.num_gaps == 0


def test_streams_beside_each_other_are_idle_only_together() -> None:
    profile = summarise([Span("a", 0, 50, lane=1), Span("b", 20, 80, lane=2), Span("a", 90, 100, lane=1)])
    assert {each.name: each.total_s for each in profile.kernels} == pytest.approx({"a": 60e-9, "b": 60e-9})
    assert profile.busy_s == pytest.approx(90e-9) and profile.idle_share == pytest.approx(0.1)


def profiled(out: Path, arm: str, device: str) -> subprocess.CompletedProcess[str]:
    arguments = ["llamagen-tiny-flashar", "--random-weights", "--res", "16", "--arm", arm, "--device", device]
    command = [sys.executable, str(ROOT / "benchmarks" / "profile_decode.py"), *arguments, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_decode_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    done = profiled(out, "flashar-eager", "cpu")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["grid"] == "4x4" and document["unit"] == "operators"
    assert sum(each["share"] for each in document["kernels"]) <= 1 + 1e-9
    assert {"aten::mm", "aten::mul"} <= {each["name"] for each in document["kernels"]}
    assert 0 <= document["idle_share"] < 1 and document["token_generation_s"] > 0
    assert "| aten::mm |" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels need a CUDA device")
def test_kernels_of_replayed_graphs(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    done = profiled(out, "flashar-graph", "cuda")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["unit"] == "kernels" and document["num_calls"] > 7 * 10
    assert 0 < document["busy_s"] <= document["span_s"]


def test_an_arm_that_is_not_to_be_had_is_one_line(tmp_path: Path) -> None:
    done = profiled(tmp_path / "profile.json", "flashar-graph", "cpu")
    assert done.returncode == 2 and "which is for cuda devices" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
