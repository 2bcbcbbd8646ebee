"""What is left of a CUDA graph capture that could not be ended, put right.

In PyTorch 2.11 the caching allocator and the default generator go on as if it ran: ``capture_end`` raises before it
tells them (aten/src/ATen/cuda/CUDAGraph.cpp).
"""

from __future__ import annotations

from contextlib import suppress

import torch

# The allocator of pinned memory has no function that ends a capture. It goes on to ask these whether theirs runs.
_KEPT: list[torch.cuda.CUDAGraph] = []


def end_broken_capture(graph: torch.cuda.CUDAGraph, device: torch.device, pool: tuple[int, int]) -> None:
    """Ends what ``graph``, whose ``capture_end`` raised, began: no more memory comes from ``pool``, which is given
    back, and random numbers are drawn as ever. Does nothing where PyTorch has ended it itself.
    """
    with suppress(RuntimeError):
        graph.reset()
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # "not currently recording": PyTorch has ended it, or resetting the graph has
        return
    torch._C._cuda_releasePool(index, pool)
    _KEPT.append(graph)
    # The generator learns that no capture runs where one ends well. One that fails too says nothing new.
    stream = torch.cuda.Stream(device)
    with suppress(RuntimeError), torch.cuda.stream(stream):
        sound = torch.cuda.CUDAGraph()
        with torch.cuda.graph(sound, stream=stream):
            torch.zeros(1, device=device)
