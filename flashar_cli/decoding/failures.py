"""What can go wrong in optimised decoding, and which of it eager decoding avoids."""

from __future__ import annotations

from typing import NoReturn

import torch


class OptimisationFailed(RuntimeError):
    """An optimisation cannot run here. The text says why, in one line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    # A CPU's allocator raises no type of its own (PyTorch: c10/core/impl/alloc_cpu.cpp).
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError)


def give_up(what: str, error: BaseException) -> NoReturn:
    """Raises OptimisationFailed: ``what (first line of the error)``. An error that is, or was caused by, running out of
    memory is raised as that (torch.OutOfMemoryError; on a CPU RuntimeError). An interrupt or the like is raised as it
    is.

    The raised error is a new object: an error that its own traceback refers to would keep tensors alive until the next
    garbage collection.
    """
    if not isinstance(error, Exception):
        raise error
    for cause in _with_causes(error):
        if is_out_of_memory(cause):
            on_gpu = isinstance(cause, torch.OutOfMemoryError)
            raise (torch.OutOfMemoryError if on_gpu else RuntimeError)(str(cause)) from error
    line = next(iter(str(error).splitlines()), type(error).__name__)
    raise OptimisationFailed(f"{what} ({line})") from error


def _with_causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if not any(each is other for other in found):
            found.append(each)
            waiting += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
    return found
