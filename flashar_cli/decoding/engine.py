"""Decoding many batches: plans kept by key, run eagerly, as CUDA graphs, compiled, or on packed weights.

Letters: B images, N = H*W cells, H grid rows, W grid columns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from flashar_cli.decoding.compiled import compiled_blocks, flex_obstacle
from flashar_cli.decoding.decoder import decode_with
from flashar_cli.decoding.forwards import Forwards
from flashar_cli.decoding.graphs import GraphedPlan
from flashar_cli.decoding.packed import can_pack, packed_linears
from flashar_cli.decoding.plan import DecodePlan, PlanKey
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.tokenizers.vq import VQTokenizer

Optimisation = Literal["eager", "graph", "compile", "flex", "packed"]
OPTIMISATIONS: tuple[Optimisation, ...] = ("eager", "graph", "compile", "flex", "packed")
GRAPHED: tuple[Optimisation, ...] = ("graph", "compile", "flex")


class Engine:
    """Decodes batches of one model. It must not be moved, cast, quantised or reloaded while its engine is in use.

    ``graph`` captures each key's first batch as CUDA graphs and replays them for the next ones; ``compile`` runs the
    blocks through ``torch.compile`` first (on a CPU: without graphs); ``flex``, to be measured, is ``compile`` with
    FlexAttention in SDPA's place; ``packed``, for float32 and bfloat16 on a CPU, not quantised, keeps a second copy of
    the weights in the matrix kernels' own order. Where that can't be done ``explain`` gets one line, once, and decoding
    goes on eagerly. Raises FlasharError for an unknown optimisation.
    """

    def __init__(
        self,
        model: FlasharModel,
        tokenizer: VQTokenizer | None = None,
        optimisation: Optimisation = "eager",
        explain: Callable[[str], None] = lambda line: None,
    ) -> None:
        if optimisation not in OPTIMISATIONS:
            raise FlasharError(f"--optimisation is {optimisation}; expected one of {', '.join(OPTIMISATIONS)}")
        self.model, self.tokenizer, self.optimisation = model, tokenizer, optimisation
        self._explain = explain
        self._forwards: Forwards | None = None
        self._plans: dict[PlanKey, DecodePlan] = {}
        self._graphs: dict[PlanKey, GraphedPlan] = {}
        self._latest: GraphedPlan | None = None
        if optimisation == "graph" and model.device.type != "cuda":
            self._fall_back("CUDA graphs need a CUDA device")
        elif optimisation == "packed" and not can_pack(model):
            self._fall_back("packed weights need float32 or bfloat16 on a CPU with oneDNN, not quantised")
        elif optimisation == "flex" and (obstacle := flex_obstacle(model)):
            self._fall_back(obstacle)
        elif optimisation in ("compile", "flex"):
            self._forwards = compiled_blocks(model, flex=optimisation == "flex")
        elif optimisation == "packed":
            self._forwards = packed_linears(model)

    @property
    def pads_batches(self) -> bool:
        """Whether a last, smaller batch is better decoded at full size than as a key of its own."""
        return self.optimisation in GRAPHED

    def plan(self, batch: int, order: Order, params: SamplingParams) -> DecodePlan:
        """The plan of a key, made at its first use. Eagerly only the latest is kept, for its memory."""
        key = PlanKey.of(self.model, batch, order, params.kind)
        if key not in self._plans:
            if not self._graphs:
                self._plans.clear()
            self._plans[key] = DecodePlan(self.model, key)
        return self._plans[key]

    @torch.inference_mode()
    def decode(
        self,
        conditions: Conditions,
        order: Order,
        params: SamplingParams,
        uniform_BN: Tensor,
        on_prefix: Callable[[], None] | None = None,
    ) -> Tensor:
        """As ``decoder.decode``; ``on_prefix`` is called once the prefix and the logits of step 0 are on their way."""
        plan = self.plan(len(conditions), order, params)
        graphs = self._graphs_of(plan, conditions, params, uniform_BN)
        if graphs is None:
            return self._decode_without_graphs(plan, conditions, params, uniform_BN, on_prefix)
        self._latest = graphs
        plan.load(conditions, params, uniform_BN)
        graphs.prefix()
        if on_prefix is not None:
            on_prefix()
        graphs.steps()
        return plan.tokens()

    @torch.inference_mode()
    def pixels(self, codes_BHW: Tensor) -> Tensor:
        """Codes int64 [B, H, W] that ``decode`` drew -> float [B, 3, height, width], about [-1, 1] and not clamped."""
        assert self.tokenizer is not None, "the engine was made without a tokenizer"
        if self._latest is not None and self._latest.codes_BHW.shape == codes_BHW.shape:
            return self._latest.pixels(codes_BHW)
        return self.tokenizer.decode_unchecked(codes_BHW.to(self.model.device))

    @torch.inference_mode()
    def teacher_forced(self, conditions: Conditions, order: Order, params: SamplingParams, codes_BHW: Tensor) -> Tensor:
        """Guided logits float32 [B, N, V], in the order, that ``decode`` would draw from if it had drawn these codes.

        Run step by step as ``decode`` runs, graphs aside, which replay the same operations.
        """
        plan = self.plan(len(conditions), order, params)
        plan.load(conditions, params, torch.zeros(len(conditions), len(order.cells)))
        with self._active_forwards():
            return torch.cat(list(plan.teacher_forced(order.from_raster(codes_BHW.to(self.model.device)))), dim=1)

    def warm(self, conditions: Conditions, order: Order, params: SamplingParams) -> None:
        """Decodes one batch of this size for nothing: plans, graphs and compiled code are ready afterwards."""
        codes = self.decode(conditions, order, params, torch.zeros(len(conditions), len(order.cells)))
        if self.tokenizer is not None:
            self.pixels(codes)

    def _decode_without_graphs(
        self,
        plan: DecodePlan,
        conditions: Conditions,
        params: SamplingParams,
        uniform_BN: Tensor,
        on_prefix: Callable[[], None] | None,
    ) -> Tensor:
        def on_step(step: int, logits_BCV: Tensor) -> None:
            if step == 0 and on_prefix is not None:
                on_prefix()

        if self._forwards is None:
            return decode_with(plan, conditions, params, uniform_BN, on_step)
        try:
            with self._forwards.active():
                return decode_with(plan, conditions, params, uniform_BN, on_step)
        except RuntimeError as error:  # as torch.compile's own errors are
            if self.optimisation not in ("compile", "flex"):
                raise
            self._fall_back(f"torch.compile failed ({_first_line(error)})")
            return decode_with(plan, conditions, params, uniform_BN, on_step)

    def _graphs_of(
        self, plan: DecodePlan, conditions: Conditions, params: SamplingParams, uniform_BN: Tensor
    ) -> GraphedPlan | None:
        if self.optimisation not in GRAPHED or self.model.device.type != "cuda":
            return None
        if plan.key not in self._graphs:
            plan.load(conditions, params, uniform_BN)  # the warm-up run before a capture needs real inputs
            try:
                with self._active_forwards():
                    self._graphs[plan.key] = GraphedPlan(plan, self.tokenizer)
            except RuntimeError as error:
                self._fall_back(f"capture failed ({_first_line(error)})")
                return None
        return self._graphs[plan.key]

    def _active_forwards(self) -> AbstractContextManager[None]:
        return nullcontext() if self._forwards is None else self._forwards.active()

    def _fall_back(self, reason: str) -> None:
        self._explain(f"--optimisation {self.optimisation}: {reason}; decoding eagerly")
        self.optimisation, self._forwards = "eager", None


def _first_line(error: RuntimeError) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
