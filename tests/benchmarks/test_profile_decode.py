"""Time by kernel: what is whose own, what is idle, and a profile of a real decode on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks import profile_decode
from benchmarks.profile_decode import Span, main, summarise
from flashar_cli.errors import FlasharError
from flashar_cli.nn.attention import DECODING_KERNELS

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


def profiled(out: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    arguments = ["llamagen-tiny-flashar", "--random-weights", "--res", "16", *options]
    command = [sys.executable, str(ROOT / "benchmarks" / "profile_decode.py"), *arguments, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_decode_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    done = profiled(out, "--arm", "flashar-eager", "--device", "cpu", "--sdpa", "math")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["grid"] == "4x4" and document["unit"] == "operators"
    assert sum(each["share"] for each in document["kernels"]) <= 1 + 1e-9
    assert {"aten::mm", "aten::mul"} <= operators(document)
    assert 0 <= document["idle_share"] < 1 and document["token_generation_s"] > 0
    assert "| aten::mm |" in done.stderr
    assert document["sdpa"] == "math" and "aten::_scaled_dot_product_attention_math" in operators(document)


def operators(document: dict[str, Any]) -> set[str]:
    return {each["name"] for each in document["kernels"]}


def test_a_back_end_of_sdpa_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches would bring back what another back-end compiled."""
    seen = []

    def prepare(*args: Any) -> None:
        seen.append((args[-1], torch._inductor.config.force_disable_caches))
        raise FlasharError("enough")

    monkeypatch.setattr(profile_decode, "prepare", prepare)
    for name in ("math", "auto"):
        command = ["profile_decode.py", "llamagen-tiny-flashar", "--arm", "flashar-compile", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [*command, "--sdpa", name, "--out", str(tmp_path / "profile.json")])
        assert main() == 2
    assert seen == [((SDPBackend.MATH,), True), (DECODING_KERNELS, False)]
    assert not torch._inductor.config.force_disable_caches


def test_the_profile_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler that stays attached to a GPU would slow what is timed after it."""
    seen = []
    for name in ("run_once", "measure_rates", "recorded"):
        monkeypatch.setattr(profile_decode, name, noted(getattr(profile_decode, name), seen))
    options = ["--random-weights", "--res", "16", "--arm", "flashar-eager", "--device", "cpu"]
    command = ["profile_decode.py", "llamagen-tiny-flashar", *options, "--out", str(tmp_path / "profile.json")]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    assert seen[-2:] == ["measure_rates", "recorded"] and set(seen[:-2]) == {"run_once"}


def noted(function: Callable[..., Any], seen: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        seen.append(function.__name__)
        return function(*arguments)

    return call


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels need a CUDA device")
@pytest.mark.parametrize("sdpa", ("auto", "flash", "cudnn", "efficient", "math"))
def test_kernels_of_replayed_graphs(tmp_path: Path, sdpa: str) -> None:
    out = tmp_path / "profile.json"
    done = profiled(out, "--device", "cuda", "--sdpa", sdpa)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["unit"] == "kernels" and document["num_calls"] > 7 * 10 and not document["truncated"]
    assert not any("spin_kernel" in each["name"] for each in document["kernels"])
    assert 0 < document["busy_s"] <= document["span_s"]


def test_a_machine_without_cuda_is_one_line(tmp_path: Path) -> None:
    done = profiled(tmp_path / "profile.json", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "PyTorch sees 0 CUDA devices" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    (
        (("--arm", "flashar-graph", "--device", "cpu"), "which is for cuda devices"),
        (("--arm", "raster-eager,flashar-eager", "--device", "cpu"), "expected one arm of ours, such as raster-eager"),
        (("--arm", "upstream", "--device", "cpu"), "--arm is 'upstream'; expected one arm of ours"),
        (("--arm", "flashar-eager", "--device", "gpu"), "--device is gpu; expected auto, cpu, cuda or cuda:I"),
        (("--arm", "flashar-eager", "--device", "cpu", "--batch-size", "0"), "--batch-size is 0; expected"),
        (("--arm", "flashar-eager", "--device", "cpu", "--sdpa", "cudnn"), "--sdpa is cudnn, which is for cuda"),
    ),
)
def test_what_can_not_be_had_is_one_line(
    options: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "profile.json"
    command = ["profile_decode.py", "llamagen-tiny-flashar", "--random-weights", *options, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not out.exists()
