"""How much a decoder asks of the host: operators on a CPU, kernel and graph launches on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flashar_cli.benchmarking.reports.document import Launches

# What the host calls to make the device do something, in the CUDA runtime and in the driver.
LAUNCHING = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")
# Device activities that are no kernels.
NOT_KERNELS = ("Memcpy", "Memset")


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that are dispatched while it is active; views move no data and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.count += 1
        return func(*args, **(kwargs or {}))


def count_launches(work: Callable[[], object], device: torch.device) -> Launches:
    """Runs ``work`` once, slower than it is, and counts what it launches."""
    if device.type == "cuda":
        return _count_cuda(work, device)
    with OperatorCounter() as counter:
        work()
    return Launches(unit="operators", count=counter.count, num_kernels=None)


def _count_cuda(work: Callable[[], object], device: torch.device) -> Launches:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize(device)
    # A decode has up to a million events; making Python objects of them all, as `events()` does, takes minutes.
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None, "a profile that has ended has results"
    num_launches = num_kernels = 0
    for event in results.events():
        name = event.name()
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            num_kernels += not name.startswith(NOT_KERNELS)
        else:
            num_launches += name.startswith(LAUNCHING)
    return Launches(unit="CUDA launches", count=num_launches, num_kernels=num_kernels)
