"""Which machine, which versions, which commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from flashar_cli import __version__
from flashar_cli.config import Config, Count

CHECKOUT = Path(__file__).parents[2]
CPUINFO = Path("/proc/cpuinfo")
# Environment variables that change how fast something runs.
VARIABLES = "OMP_ MKL_ KMP_ GOMP_ ONEDNN_ DNNL_ CUDA_ CUBLAS CUDNN_ NVIDIA_TF32 PYTORCH_ TORCH MALLOC_ LD_PRELOAD"


class Hardware(Config):
    """What it ran on."""

    cpu: str
    num_cpu_cores: Count
    gpu: str | None
    cpu_capability: str | None = Field(None, description="vector instructions that PyTorch uses")
    cpu_features: tuple[str, ...] | None = Field(
        None, description="AMX and bfloat16 instructions; null where Linux names no flags or PyTorch has no oneDNN"
    )
    memory_bytes: Count | None = None
    gpu_memory_bytes: Count | None = None
    gpu_capability: str | None = None


class Software(Config):
    """What it ran with."""

    flashar: str
    torch: str
    python: str
    cuda: str | None
    commit: str | None
    numpy: str | None = None
    torchao: str | None = Field(None, description="what quantises; null where it is not installed")
    triton: str | None = Field(None, description="what compiles for GPUs; null where it is not installed")
    cudnn: str | None = None
    gpu_driver: str | None = None
    platform: str | None = None


def hardware(device: torch.device) -> Hardware:
    """The processor, the cores this process may use, and the GPU where one is benched."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Hardware(
        cpu=_cpuinfo("model name") or platform.processor() or platform.machine(),
        num_cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=gpu.name if gpu else None,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cpu_features=_cpu_features(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu_memory_bytes=gpu.total_memory if gpu else None,
        gpu_capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
    )


def software() -> Software:
    """Versions, and the commit where flashar runs from a git checkout."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return Software(
        flashar=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        cuda=torch.version.cuda,
        commit=_commit(),
        numpy=np.__version__,
        torchao=_version("torchao"),
        triton=_version("triton"),
        cudnn=None if cudnn is None else str(cudnn),
        gpu_driver=_driver(),
        platform=platform.platform(),
    )


def command() -> tuple[str, ...]:
    """What was typed."""
    return ("flashar", *sys.argv[1:])


def variables() -> dict[str, str]:
    """The environment variables that are set and change speed."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(tuple(VARIABLES.split()))}


def sdpa_backends() -> tuple[str, ...]:
    """The kernels of SDPA that are switched on for CUDA, whether or not a shape or a device can have them."""
    switches = {
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "mem_efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
        "math": torch.backends.cuda.math_sdp_enabled,
    }
    return tuple(name for name, is_enabled in switches.items() if is_enabled())


def _version(package: str) -> str | None:
    """Of an installed package, without importing it; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The first line of the version of NVIDIA's kernel module."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None


def _cpu_features() -> tuple[str, ...] | None:
    """What bfloat16 products depend on and ``cpu_capability`` leaves out, by the kernel's names."""
    flags = _cpuinfo("flags")
    if flags is None or not torch.backends.mkldnn.is_available():
        return None
    return tuple(sorted(flag for flag in flags.split() if flag.startswith("amx_") or flag == "avx512_bf16"))


def _cpuinfo(key: str) -> str | None:
    """A value that Linux tells of the first processor; None where it tells none."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def _commit() -> str | None:
    """HEAD, with ``-dirty`` where tracked files differ from it; None outside a checkout of this project."""
    if not (CHECKOUT / ".git").exists():
        return None
    head = git(CHECKOUT, "rev-parse", "--short=12", "HEAD")
    changes = git(CHECKOUT, "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if head and changes else head


def git(checkout: Path, *arguments: str) -> str | None:
    """What a git command says about a checkout; None where it fails."""
    try:
        command = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
