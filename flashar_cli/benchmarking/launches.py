"""How much a decoder asks of the host: forwards; operators on a CPU, kernel and graph launches on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flashar_cli.benchmarking.reports.document import Launches

# What the host calls to make the device do something, in the CUDA runtime and in the driver.
LAUNCHING = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")
# Device activities that are no kernels.
NOT_KERNELS = ("Memcpy", "Memset")


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that are dispatched while it is active, about the kernels of a GPU. What only returns memory
    that it was given, as views do, moves no data and is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.count += func._schema.is_mutable or _memory(result) not in map(_memory, args)
        else:
            self.count += not func.is_view
        return result


def _memory(value: object) -> int | None:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def count_launches(work: Callable[[], object], device: torch.device) -> Launches:
    """Runs ``work`` once, slower than it is, and counts what it launches."""
    if device.type == "cuda":
        return _count_cuda(work, device)
    with OperatorCounter() as counter:
        work()
    return Launches(unit="operators", count=counter.count, num_kernels=None)


@contextmanager
def counted_calls(module: nn.Module, counts: Callable[[], bool] = lambda: True) -> Iterator[list[int]]:
    """Counts forwards of a module, those at which ``counts()`` is true, in the one entry of the list."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += counts()

    handle = module.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def profiled_events(work: Callable[[], object], device: torch.device) -> list[Any]:
    """The profiler's own events of ``work``: on CUDA those of the device and of its runtime, on a CPU operators.

    A decode has up to a million; making Python objects of them all, as the profiler's ``events()`` does, takes minutes.
    """
    activities = torch.profiler.ProfilerActivity
    on_gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[activities.CUDA if on_gpu else activities.CPU]) as profile:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None, "a profile that has ended has results"
    events: list[Any] = results.events()
    return events


def _count_cuda(work: Callable[[], object], device: torch.device) -> Launches:
    num_launches = num_kernels = 0
    for event in profiled_events(work, device):
        name = event.name()
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            num_kernels += not name.startswith(NOT_KERNELS)
        else:
            num_launches += name.startswith(LAUNCHING)
    return Launches(unit="CUDA launches", count=num_launches, num_kernels=num_kernels)
