"""How much a decoder asks of the host: forwards; operators on a CPU, kernel and graph launches on CUDA."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flashar_cli.config import Config, Count

# What the host calls to make the device do something, in the CUDA runtime and in the driver.
LAUNCHING = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")
# Device activities other than kernels.
NOT_KERNELS = ("Memcpy", "Memset")
# The kernel of torch.cuda._sleep.
MARKER = "spin_kernel"
# libkineto reads the file that this environment variable names when a profile begins.
KINETO_CONFIG = "KINETO_CONFIG"
# The most that works: PyTorch 2.11 counts the bytes in 32 bits, so that 4096 would be 0.
BUFFERS_MB = 2047


class Launches(Config):
    """What the host has to start for one batch, counted in one more run after all timed ones."""

    unit: Literal["operators", "CUDA launches"] = Field(
        description="operators: those PyTorch dispatched, views left out; CUDA launches: kernels, copies and graphs"
    )
    count: int = Field(ge=0)
    num_kernels: Count | None = Field(description="kernels the device ran, those inside graphs too; null on a CPU")
    truncated: bool = Field(False, description="the profiler's buffers were full: there were more than these")


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that are dispatched while it is active, but for those that move no data, as views."""

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
    """Which memory a tensor's numbers are in; where it doesn't say, its own."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except RuntimeError:  # packed weights
        return id(value)


def count_launches(work: Callable[[], object], device: torch.device) -> Launches:
    """Runs ``work`` once, slower than usual, and counts what it launches."""
    if device.type != "cuda":
        with OperatorCounter() as counter:
            work()
        return Launches(unit="operators", count=counter.count, num_kernels=None)
    num_launches = num_kernels = 0
    events, truncated = profiled_events(work, device)
    for event in events:
        name = event.name()
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            num_kernels += not name.startswith(NOT_KERNELS)
        else:
            num_launches += name.startswith(LAUNCHING)
    return Launches(unit="CUDA launches", count=num_launches, num_kernels=num_kernels, truncated=truncated)


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
    """What PyTorch's profiler saw of ``work``: on CUDA the device and its runtime, on a CPU operators."""
    on_gpu, kinds = device.type == "cuda", torch.profiler.ProfilerActivity
    with _large_buffers(), torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profile:
        work()
        if on_gpu:
            torch.cuda._sleep(1)  # the last kernel: it is not seen where the buffers were full before it
            torch.cuda.synchronize(device)
    # Not the profiler's own ``events()``: a decode has millions, and Python objects of them all take minutes.
    results = profile.profiler.kineto_results if profile.profiler else None
    assert results is not None, "a profile that has ended has results"
    return without_marker(results.events()) if on_gpu else Profiled(results.events(), False)


def without_marker(events: list[Any]) -> Profiled:
    """The events but those of the marker that ends them: its kernel and the call that launched it."""
    markers = {event.correlation_id() for event in events if MARKER in event.name()}
    return Profiled([event for event in events if event.correlation_id() not in markers], not markers)


@contextmanager
def _large_buffers() -> Iterator[None]:
    """Room for some eight million kernels instead of half a million, unless the user has set it: memory is taken as
    needed, and what does not fit would be dropped silently.
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
