"""Cells of larger measurements: commands of flashar, each a process of its own, and what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from flashar_cli.machine.environment import hardware, software

FLASHAR = (sys.executable, "-m", "flashar_cli")


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Notes what a folder's cells are of. Exits where it has cells of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n")
    elif (known := json.loads(path.read_text())) != settings:
        sys.exit(f"{folder} has cells of other settings: {known}, not {settings}; choose another folder")


def make(made: Path, arguments: Sequence[str], folder: Path, threads: int) -> None:
    """Runs a command of flashar that ends with writing ``made``, unless that is there; what it prints goes into
    FOLDER/log. Exits where it fails or is stopped.
    """
    if made.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads))}
    with open(folder / "log", "a") as log:
        log.write(f"flashar {' '.join(arguments)}\n")
        log.flush()
        done = subprocess.run([*FLASHAR, *arguments], stdout=log, stderr=log, env=environment, check=False)
    if done.returncode or not made.exists():  # 0 also says: stopped, the same command goes on
        sys.exit(f"flashar {' '.join(arguments)} failed or was stopped; {folder / 'log'} says why")


def evaluated(folder: Path) -> dict[str, Any]:
    """The one arm that ``flashar eval`` reported in a folder."""
    (arm,) = json.loads((folder / "eval.json").read_text())["arms"]
    found: dict[str, Any] = arm
    return found


def figures(arm: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Value and standard error of each figure of an arm, by name."""
    return {each["name"]: {"value": each["value"], "error": each["error"]} for each in arm["figures"]}


def origin() -> dict[str, Any]:
    """When and where something was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "hardware": hardware(torch.device("cpu")).model_dump(),
        "software": software().model_dump(),
    }
