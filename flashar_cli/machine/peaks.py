"""How much memory was held at most."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ArmMemory:
    """The most that one of several arms holds on a CUDA device, with what they share; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes: int | None = None
        self._device = device
        self._shared = self._allocated()
        self._own = 0

    @contextmanager
    def counted(self, keeps: bool = False) -> Iterator[None]:
        """Counts what is held inside; ``keeps``: what is still held afterwards is the arm's own."""
        before = self._allocated()
        reset_peak_memory(self._device)
        yield
        peak = peak_memory_bytes(self._device)
        if peak is not None:
            self.peak_bytes = max(self.peak_bytes or 0, self._shared + self._own + peak - before)
        if keeps:
            self._own += self._allocated() - before

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new peak, where the device counts one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that PyTorch held on the device since the last reset; None on a CPU, which keeps no such count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def peak_rss_bytes() -> int:
    """The most memory this process has occupied so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
