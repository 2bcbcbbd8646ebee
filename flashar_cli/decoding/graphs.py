"""A decode plan as CUDA graphs: captured once, replayed for every batch of its key.

Letters: B images, H grid rows, W grid columns, C cells of a step, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from flashar_cli.decoding.broken_capture import end_broken_capture
from flashar_cli.decoding.failures import give_up
from flashar_cli.decoding.plan import DecodePlan, StepHook

# A diagonal order of up to 32x32 cells is one graph. Raster orders, whose graphs would reach a million kernels, are
# split: a graph's host memory and instantiation time grow with its kernels, a launch more costs microseconds.
STEPS_PER_GRAPH = 64

ToPixels = Callable[[Tensor], Tensor]


class GraphedPlan:
    """Prefix, steps and, where ``to_pixels`` is given, token decode of a plan, as graphs in one memory pool.

    The graphs read weights and buffers where they were at capture: the model must not be moved, cast or reloaded while
    this lives. Raises OptimisationFailed where capture is impossible.
    """

    @torch.inference_mode()
    def __init__(self, plan: DecodePlan, to_pixels: ToPixels | None, on_step: StepHook | None = None) -> None:
        """``to_pixels`` turns codes [B, H, W] into pictures [B, 3, height, width]. ``on_step`` is called once, at
        capture: logits it keeps are rewritten by every replay.
        """
        self.plan = plan
        # Graphs read weights by address. A module may get others, as compiling it does, but not while these are free.
        self.weights = [parameter.detach() for parameter in plan.model.parameters()]
        grid, device = plan.key.order.grid, plan.key.device
        self.codes_BHW = torch.zeros(plan.key.batch, grid.height, grid.width, dtype=torch.int64, device=device)
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._warm_up(to_pixels)

        self._prefix, first_BCV = self._capture(plan.prefix)
        self._steps: list[torch.cuda.CUDAGraph] = []
        num_steps = plan.key.order.num_steps
        for first in range(0, num_steps, STEPS_PER_GRAPH):
            last = min(first + STEPS_PER_GRAPH, num_steps)
            graph, _ = self._capture(partial(self._run_steps, first, last, first_BCV, on_step))
            self._steps.append(graph)
        self._first_BCV = first_BCV  # written by one graph and read by the next, so its memory must not be reused
        self._pixels: torch.cuda.CUDAGraph | None = None
        if to_pixels is not None:
            self._pixels, self._pictures = self._capture(partial(to_pixels, self.codes_BHW))

    def prefix(self) -> None:
        """Enqueues the prefix and the logits of step 0."""
        self._prefix.replay()

    def steps(self) -> None:
        """Enqueues all sampling and every further forward."""
        for graph in self._steps:
            graph.replay()

    @torch.inference_mode()
    def pixels(self, codes_BHW: Tensor) -> Tensor:
        """Codes int64 [B, H, W] -> a fresh float [B, 3, height, width]. Needs ``to_pixels`` at construction."""
        assert self._pixels is not None, "captured without pictures"
        self.codes_BHW.copy_(codes_BHW)
        self._pixels.replay()
        return self._pictures.clone()

    def _run_steps(self, first: int, last: int, first_BCV: Tensor, on_step: StepHook | None) -> Tensor:
        if first == 0:
            self.plan.draw(0, first_BCV, on_step)
        self.plan.advance(max(first, 1), last, on_step)
        return self.plan.codes_BN

    def _warm_up(self, to_pixels: ToPixels | None) -> None:
        """One eager run on the side stream: library handles and workspaces are made outside the graphs."""
        device = self.plan.key.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._run_steps(0, self.plan.key.order.num_steps, self.plan.prefix(), None)
            if to_pixels is not None:
                to_pixels(self.codes_BHW)
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
                end_broken_capture(graph, self.plan.key.device, self._pool)
            give_up("capture failed", failed.pop() if failed else error)
        return graph, result
