"""Which machine, which versions, which commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from flashar_cli import __version__
from flashar_cli.benchmarking.report import Hardware, Software

CHECKOUT = Path(__file__).parents[2]


def hardware(device: torch.device) -> Hardware:
    """The processor, the cores this process may use, and the GPU where one is benched."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Hardware(cpu=_cpu_name(), num_cpu_cores=_num_usable_cores(), gpu=gpu)


def software() -> Software:
    """Versions, and the commit where flashar runs from a git checkout."""
    return Software(
        flashar=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        cuda=torch.version.cuda,
        commit=_commit(),
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _num_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str | None:
    """HEAD, with ``-dirty`` where tracked files differ from it; None outside a checkout of this project."""
    if not (CHECKOUT / ".git").exists():
        return None
    head = _git("rev-parse", "--short=12", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if head and changes else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
