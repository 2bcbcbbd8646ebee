"""The composite action: it parses, types options that exist, and its shell lines do what they say."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from flashar_cli.cli.main import app

yaml = pytest.importorskip("yaml")
GITHUB = Path(__file__).parents[1] / ".github"
ACTION = GITHUB / "actions" / "flashar-bench" / "action.yml"
WORKFLOW = GITHUB / "workflows" / "bench.yml"
pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="a source distribution holds no workflows")


def action() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return document


def step(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(step for step in action()["runs"]["steps"] if step["name"] == name)
    return found


def options_of(command: str) -> set[str]:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {name for parameter in parameters for name in parameter.opts}


def test_every_option_exists() -> None:
    lines = "\n".join(step["run"] for step in action()["runs"]["steps"])
    lines = lines.replace("$ARGUMENTS", action()["inputs"]["arguments"]["default"])
    typed = re.findall(r"^\s*flashar (\w+) (.*)$", lines, re.MULTILINE)
    assert [command for command, _ in typed] == ["bench", "compare"]
    for command, arguments in typed:
        assert set(re.findall(r"--[a-z-]+", arguments)) <= options_of(command), arguments


def test_every_step_has_a_shell_and_inputs_that_are_declared() -> None:
    for part in action()["runs"]["steps"]:
        assert part["shell"] == "bash"
        used = re.findall(r"\$\{\{ inputs\.(\w+) \}\}", " ".join(part["env"].values()))
        assert set(used) <= set(action()["inputs"])
        assert set(re.findall(r"\$\{?([A-Z_]+)", part["run"])) <= {*part["env"], "GITHUB_STEP_SUMMARY"}
        # Text of others, written into a script, would be run: it must come through the environment.
        assert "${{" not in part["run"]


def test_workflow_passes_inputs_that_the_action_has() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["bench"]["steps"]
    own = next(step for step in steps if step.get("uses", "").startswith("./"))
    assert (GITHUB.parent / own["uses"] / "action.yml").is_file()
    assert set(own["with"]) <= set(action()["inputs"])


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Runs a step's script as a runner does, with a `flashar` that writes down what it is told."""
    stub = tmp_path / "bin" / "flashar"
    stub.parent.mkdir()
    stub.write_text(
        '#!/bin/bash\necho "$@" >> calls\nif [ "$1" = bench ]; then echo a page > bench.md; fi\n'
        'if [ "$1" = compare ]; then echo a table; exit "$COMPARE_CODE"; fi\n'
    )
    stub.chmod(0o755)

    def run(name: str, code: int = 0, **inputs: str) -> tuple[int, str, str]:
        values = {key: str(value["default"]) for key, value in action()["inputs"].items()} | inputs
        env = {
            key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: values[match[1]], text)
            for key, text in step(name)["env"].items()
        }
        env |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "COMPARE_CODE": str(code)}
        env |= {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
        (tmp_path / "script").write_text(step(name)["run"])
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "script"]
        done = subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
        calls, summary = tmp_path / "calls", tmp_path / "summary"
        return done.returncode, calls.read_text() if calls.exists() else "", summary.read_text()

    return run


def test_bench_step_writes_the_summary(shell: Any) -> None:
    code, calls, summary = shell("Bench", arguments="a-model --repeats 3")
    assert (code, summary) == (0, "a page\n")
    assert calls == "bench a-model --repeats 3 --out bench.json --report bench.md --overwrite\n"


def test_compare_step_fails_on_a_regression(shell: Any, tmp_path: Path) -> None:
    code, calls, summary = shell("Compare", baseline="base.json")
    assert (code, calls) == (0, "") and "No earlier report" in summary
    (tmp_path / "base.json").write_text("{}")
    assert shell("Compare", baseline="base.json")[0] == 0
    code, calls, summary = shell("Compare", code=1, baseline="base.json")
    assert code == 1 and "a table" in summary
    assert calls.splitlines()[-1] == "compare base.json bench.json --gate ratios --tolerance 20% --markdown"
