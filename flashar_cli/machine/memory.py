"""How much memory and disk is free, and the refusal of what does not fit. torch is imported for a GPU only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
# A container's own limit and what it uses of it (Linux control groups, version 2).
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device | None = None) -> int:
    """Free memory of a GPU, or of the machine."""
    if device is not None and device.type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = MEMINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    # Other systems than Linux: half of the installed memory.
    free = available[0] if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min(free, _free_in_container())


def free_disk_bytes(path: Path) -> int:
    """Free disk space below a path that need not exist yet."""
    absolute = path.absolute()
    return shutil.disk_usage(next(folder for folder in (absolute, *absolute.parents) if folder.exists())).free


def require_memory(what: str, needed_bytes: float, device: torch.device | None = None) -> None:
    """Raises FlasharError where that much memory is not free; ``what`` names the setting that asks for it."""
    where = "of memory" if device is None or device.type == "cpu" else f"on {device}"
    _require(what, needed_bytes, free_bytes(device), where)


def require_disk(what: str, needed_bytes: float, path: Path) -> None:
    """Raises FlasharError where that much can't be written below ``path``."""
    _require(what, needed_bytes, free_disk_bytes(path), f"of disk for {path}")


def gib(num_bytes: float) -> str:
    """``12.3 GiB``."""
    size = num_bytes / 2**30
    return f"{size:.1f} GiB" if size < 1e6 else f"{size:.1e} GiB"


def _require(what: str, needed_bytes: float, free: int, where: str) -> None:
    if needed_bytes > free:
        raise FlasharError(f"{what} needs {gib(needed_bytes)}; {gib(free)} {where} are free on this machine")


def _free_in_container() -> int:
    try:
        limit, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(statistics["inactive_file"]))  # cached files give way
    except (OSError, ValueError, KeyError):  # no such limit
        return 2**63
