"""What the processes of one run tell each other.

In a single process without a process group, all of this does nothing.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from flashar_cli.errors import FlasharError
from flashar_cli.machine.world import World, current_world

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # with another process, which may have much more to do


@contextmanager
def process_group(device: torch.device, patience: timedelta | None = None) -> Iterator[World]:
    """Within the context, the process group of the processes that `torchrun` or ``--nproc`` started: gloo for CPU
    tensors, NCCL for CUDA tensors. ``patience`` is how long one waits for another, None: PyTorch's default. Raises
    FlasharError where another process is gone.
    """
    world = current_world()
    if world.size == 1:
        yield world
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield world
    except BaseException as error:
        # The traceback refers to the DDP model, which must not outlive its process group: the group's threads would
        # abort the process at its end.
        traceback.clear_frames(error.__traceback__)
        if not _is_lost_connection(error):
            raise
        raise FlasharError(
            f"process {world.rank} of {world.size} lost another one ({str(error).splitlines()[0][:120]}); "
            "run the same command again to resume"
        ) from None
    finally:
        gc.collect()  # a DDP model is in reference cycles
        dist.destroy_process_group()


def sum_over_processes(values: Sequence[float]) -> list[float]:
    """Each value summed over all processes, in float64."""
    if not dist.is_initialized():
        return list(values)
    total = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather_objects(value: T) -> list[T]:
    """One value of each process, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """The value of the first process, for all of them."""
    return gather_objects(value)[0]


def barrier() -> None:
    """Waits for the other processes."""
    sum_over_processes([0.0])


def _is_lost_connection(error: BaseException) -> bool:
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
