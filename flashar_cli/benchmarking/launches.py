"""How much a decoder asks of the host: forwards; operators on a CPU, kernel and graph launches on CUDA."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flashar_cli.benchmarking.reports.document import Launches

# What the host calls to make the device do something, in the CUDA runtime and in the driver.
LAUNCHING = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")
# Device activities that are no kernels.
NOT_KERNELS = ("Memcpy", "Memset")
# The kernel of torch.cuda._sleep.
MARKER = "spin_kernel"
# libkineto reads the file that this environment variable names when a profile begins.
KINETO_CONFIG = "KINETO_CONFIG"
# Its most: PyTorch 2.11 counts the bytes in 32 bits, and 4096 would be none at all.
BUFFERS_MB = 2047


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
    """Which memory a tensor's numbers are in; tensors that don't say are each taken to have their own."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except RuntimeError:  # packed weights
        return id(value)


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


class Profiled(NamedTuple):
    """The profiler's own events of some work, and whether more did not fit into its buffers."""

    events: list[Any]
    truncated: bool


def profiled_events(work: Callable[[], object], device: torch.device) -> Profiled:
    """What PyTorch's profiler saw of ``work``: on CUDA the device and its runtime, on a CPU operators.

    A decode has up to some millions; making Python objects of them all, as the profiler's ``events()`` does, takes
    minutes.
    """
    activities = torch.profiler.ProfilerActivity
    on_gpu = device.type == "cuda"
    with (
        _large_buffers(),
        torch.profiler.profile(activities=[activities.CUDA if on_gpu else activities.CPU]) as profile,
    ):
        work()
        if on_gpu:
            torch.cuda._sleep(1)  # the last kernel of all, which is not seen where the buffers were full before it
            torch.cuda.synchronize(device)
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None, "a profile that has ended has results"
    return without_marker(results.events()) if on_gpu else Profiled(results.events(), False)


def without_marker(events: list[Any]) -> Profiled:
    """The events but those of the marker that ends them: its kernel and the call that launched it."""
    markers = {event.correlation_id() for event in events if MARKER in event.name()}
    return Profiled([event for event in events if event.correlation_id() not in markers], not markers)


@contextmanager
def _large_buffers() -> Iterator[None]:
    """Room for some eight million kernels instead of half a million, where the user has set nothing: memory is taken
    as it is needed, and what does not fit would be dropped without an error.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(f"ACTIVITIES_MAX_GPU_BUFFER_SIZE_MB={BUFFERS_MB}\n")
        file.flush()
        is_ours = os.environ.setdefault(KINETO_CONFIG, file.name) == file.name
        try:
            yield
        finally:
            if is_ours:
                del os.environ[KINETO_CONFIG]


def _count_cuda(work: Callable[[], object], device: torch.device) -> Launches:
    num_launches = num_kernels = 0
    events, truncated = profiled_events(work, device)
    for event in events:
        name = event.name()
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            num_kernels += not name.startswith(NOT_KERNELS)
        else:
            num_launches += name.startswith(LAUNCHING)
    return Launches(unit="CUDA launches", count=num_launches, num_kernels=num_kernels, truncated=truncated)
