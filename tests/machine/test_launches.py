"""What the profiler saw, and whether that was all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from flashar_cli.benchmarking.run import counts_at
from flashar_cli.machine.launches import count_launches, profiled_events, without_marker

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Event:
    """As the profiler has them, as far as the marker goes."""

    called: str
    correlation: int

    def name(self) -> str:
        return self.called

    def correlation_id(self) -> int:
        return self.correlation


WORK = [Event("cudaGraphLaunch", 7), Event("gemm", 7), Event("cudaLaunchKernel", 8), Event("silu", 8)]
MARKER = [Event("cudaLaunchKernel", 9), Event("at::cuda::(anonymous namespace)::spin_kernel(long)", 9)]


def test_the_marker_is_left_out_and_its_absence_is_truncation() -> None:
    assert without_marker([*WORK, *MARKER]) == (WORK, False)
    assert without_marker(WORK) == (WORK, True)


def test_launches_are_counted_when_nothing_is_timed_any_more() -> None:
    assert [counts_at(torch.device("cuda"), is_last) for is_last in (False, True)] == [False, True]
    assert counts_at(CPU, False), "on a CPU nothing stays attached"


def test_the_profiler_has_room_for_a_raster_image() -> None:
    """What libkineto says of its buffers, by default 128 MB, and that a user's own settings stay."""
    program = (
        "import torch; from flashar_cli.machine.launches import profiled_events as p\n"
        "p(lambda: torch.ones(1) + 1, torch.device('cpu'))"
    )
    environment = os.environ | {"KINETO_LOG_LEVEL": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "Max GPU buffer size: 2047MB" in done.stderr + done.stdout


def test_the_users_profiler_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    profiled_events(lambda: seen.append(os.environ["KINETO_CONFIG"]), CPU)
    assert "KINETO_CONFIG" not in os.environ and not os.path.exists(seen[0])
    monkeypatch.setenv("KINETO_CONFIG", "/theirs")
    profiled_events(lambda: seen.append(os.environ["KINETO_CONFIG"]), CPU)
    assert (seen[1], os.environ["KINETO_CONFIG"]) == ("/theirs", "/theirs")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels need a CUDA device")
def test_kernels_of_a_gpu_are_counted() -> None:
    left = torch.ones(64, 64, device="cuda")
    found = count_launches(lambda: left + left, left.device)
    assert (found.count, found.num_kernels, found.truncated) == (1, 1, False)
