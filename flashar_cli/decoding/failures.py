"""What can go wrong where decoding is optimised: what eager decoding gets round, and what it does not."""

from __future__ import annotations

from typing import NoReturn

import torch


class OptimisationFailed(RuntimeError):
    """An optimisation can't be had here. Its text says why, in one line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    # A CPU's allocator has no kind of error of its own (PyTorch: c10/core/impl/alloc_cpu.cpp).
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError)


def give_up(what: str, error: BaseException) -> NoReturn:
    """Raises OptimisationFailed: ``what (first line of the error)``. What ran out of memory, itself or in its causes,
    is raised as such (torch.OutOfMemoryError; on a CPU RuntimeError), and what is no Exception, such as an interrupt,
    as it is.

    The error raised is a new one: one that its own traceback refers to would keep tensors until garbage is collected.
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
