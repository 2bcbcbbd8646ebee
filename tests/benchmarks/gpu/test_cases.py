"""The table of cases: every command line is one that exists, and the plan of the README is what a call does."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import typer

from benchmarks import profile_decode, train_rate
from benchmarks.gpu import suite as gpu_suite
from benchmarks.gpu.cases import CASES, REHEARSAL, Case
from benchmarks.gpu.targets import summary
from flashar_cli.benchmarking.arms import is_known_arm
from flashar_cli.cli.main import app
from tests.benchmarks.gpu.test_targets import bench, training, verdicts

ROOT = Path(__file__).parents[3]
CALLS = 3


def test_cases_name_options_and_arms_that_exist() -> None:
    parameters = typer.main.get_command(app).commands["bench"].params  # type: ignore[attr-defined]
    options = {name for parameter in parameters for name in parameter.opts}
    for case in (*CASES, *REHEARSAL):
        words = case.arguments.split()
        if case.kind == "bench":
            assert {word for word in words if word.startswith("--")} <= options
            named = words[words.index("--arms") + 1].split(",") if "--arms" in words else []
            assert all(arm == "upstream" or is_known_arm(arm) for arm in named)
            assert (case.needs == "upstream") == ("upstream" in case.arguments)
            assert (case.needs == "torchao") == ("--quantize" in words)
        elif case.kind == "profile":
            assert is_known_arm(profile_decode.make_parser().parse_args([*words, "--out", "FILE"]).arm)
        elif case.kind == "train":
            train_rate.make_parser().parse_args([*words, "--out", "FILE"])


def test_a_call_leaves_at_most_eight_files() -> None:
    for cases in (CASES, REHEARSAL):
        assert len({case.name for case in cases}) == len(cases)
        assert len([case for case in cases if case.kind == "images"]) + len(["results", "running", "log"]) <= 8


def test_the_plan_of_the_readme_is_what_calls_do_and_it_measures_every_target() -> None:
    rest, planned = list(CASES), []
    for _ in range(CALLS):
        fitting, rest = gpu_suite.split(rest, 60 * gpu_suite.MINUTES - gpu_suite.RESERVE_S)
        planned.append([case.name for case in fitting])
    text = (ROOT / "benchmarks" / "README.md").read_text()
    written = [re.findall(r"`([^`]+)`", line) for line in text.splitlines() if re.match(r"\| call \d", line)]
    assert written == planned
    names = {name for call in planned for name in call}
    entries = {case.name: made_up(case) for case in CASES if case.name in names and case.kind in ("bench", "train")}
    assert all(row[1] in ("met", "missed") for row in verdicts(summary(entries)).values())


def made_up(case: Case) -> dict[str, object]:
    """What a case would report, at its last batch size."""
    if case.kind == "train":
        return training(0.4)
    model, *words = case.arguments.split()
    options = {name: value for name, value in pairwise(words) if name.startswith("--")}
    own = {"llamagen-xl": 384, "infinity-2b": 1024}.get(model, 512)
    side = int(options.get("--res", own)) // 16
    size = int(options.get("--batch-sizes", "1").split(",")[-1])
    return bench(model, f"{side}x{side}", size, dict.fromkeys(options["--arms"].split(","), 1.0), {})
