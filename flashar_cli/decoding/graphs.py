"""A decode plan as CUDA graphs: captured once, replayed for every batch of its key.

Letters: B images, C cells of a step, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from flashar_cli.decoding.decoder import StaticPlan, StepHook
from flashar_cli.decoding.failures import give_up
from flashar_cli.models.base import TokenModel

# A diagonal order of up to 32x32 cells is one graph. Raster orders, whose graphs would reach a million kernels, are
# split: a graph's host memory and instantiation time grow with its kernels, while one more launch costs microseconds.
STEPS_PER_GRAPH = 64

# PyTorch cannot end a capture in its allocator of pinned memory, which goes on asking these graphs whether theirs runs.
_KEPT: list[torch.cuda.CUDAGraph] = []

ToPixels = Callable[[Tensor], Tensor]


def graph_obstacle(model: TokenModel) -> str | None:
    """Why a model's steps cannot be graphs here, None where they can."""
    return None if model.device.type == "cuda" else "CUDA graphs need a CUDA device"


class GraphedPlan:
    """Prefix, steps and, where ``to_pixels`` is given, token decode of a plan, as graphs in one memory pool.

    The graphs read weights and buffers where they were at capture: the model must not be moved, cast or reloaded while
    this lives. Raises OptimisationFailed where capture is impossible.
    """

    @torch.inference_mode()
    def __init__(self, plan: StaticPlan, to_pixels: ToPixels | None, on_step: StepHook | None = None) -> None:
        """``to_pixels`` turns the plan's tokens into images [B, 3, height, width]. ``on_step`` is called once, at
        capture; every replay rewrites the logits that it got.
        """
        self.plan = plan
        # Graphs read weights by address. Compiling may give a module other weights; these must not be freed then.
        self.weights = [parameter.detach() for parameter in plan.model.parameters()]
        self.tokens = torch.zeros_like(plan.tokens())
        self._stream = torch.cuda.Stream(plan.key.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._warm_up(to_pixels)

        self._prefix, first_BCV = self._capture(plan.prefix)
        self._steps: list[torch.cuda.CUDAGraph] = []
        num_steps = plan.num_steps
        for first in range(0, num_steps, STEPS_PER_GRAPH):
            last = min(first + STEPS_PER_GRAPH, num_steps)
            graph, _ = self._capture(partial(self._run_steps, first, last, first_BCV, on_step))
            self._steps.append(graph)
        self._first_BCV = first_BCV  # written by one graph and read by the next, so its memory must not be reused
        self._pixels: torch.cuda.CUDAGraph | None = None
        if to_pixels is not None:
            self._pixels, self._images = self._capture(partial(to_pixels, self.tokens))

    def prefix(self) -> None:
        """Enqueues the prefix and the logits of step 0."""
        self._prefix.replay()

    def steps(self) -> None:
        """Enqueues all sampling and every further forward."""
        for graph in self._steps:
            graph.replay()

    @torch.inference_mode()
    def pixels(self, tokens: Tensor) -> Tensor:
        """Tokens of the plan -> a new float [B, 3, height, width]. Needs ``to_pixels`` at construction."""
        assert self._pixels is not None, "captured without images"
        self.tokens.copy_(tokens)
        self._pixels.replay()
        return self._images.clone()

    def _run_steps(self, first: int, last: int, first_BCV: Tensor, on_step: StepHook | None) -> Tensor:
        if first == 0:
            self.plan.sample(0, first_BCV, on_step)
        self.plan.advance(max(first, 1), last, on_step)
        return first_BCV

    def _warm_up(self, to_pixels: ToPixels | None) -> None:
        """One eager run on the side stream, so that library handles and workspaces are made outside the graphs."""
        device = self.plan.key.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._run_steps(0, self.plan.num_steps, self.plan.prefix(), None)
            if to_pixels is not None:
                to_pixels(self.tokens)
        torch.cuda.current_stream(device).wait_stream(self._stream)

    def _capture(self, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        failed: list[BaseException] = []
        try:
            # When work fails, ending its capture fails too: PyTorch then stays on the capture's stream, and its error
            # hides that of the work.
            with torch.cuda.stream(self._stream), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                try:
                    result = work()
                except BaseException as error:
                    failed.append(error)
                    raise
        except RuntimeError as error:
            if not (failed and error is failed[0]):
                _end_broken_capture(graph, self.plan.key.device, self._pool)
            give_up("capture failed", failed.pop() if failed else error)
        return graph, result


def _end_broken_capture(graph: torch.cuda.CUDAGraph, device: torch.device, pool: tuple[int, int]) -> None:
    """Ends the capture of ``graph``, whose ``capture_end`` raised: no more memory comes from ``pool``, which is given
    back, and random numbers are generated as before. Does nothing where PyTorch has ended it itself.

    In PyTorch 2.11 the caching allocator and the default generator go on as if the capture ran: ``capture_end`` raises
    before it tells them (aten/src/ATen/cuda/CUDAGraph.cpp).
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
    # The generator learns that no capture runs when one ends well. If this one fails too, that is no news.
    stream = torch.cuda.Stream(device)
    with suppress(RuntimeError), torch.cuda.stream(stream):
        sound = torch.cuda.CUDAGraph()
        with torch.cuda.graph(sound, stream=stream):
            torch.zeros(1, device=device)
