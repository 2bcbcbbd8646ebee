"""Decoding many batches: plans kept by key, run eagerly, as CUDA graphs, compiled, or on packed weights.

Letters: B images, N = H*W cells, H grid rows, W grid columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from flashar_cli.decoding.compiled import compiled_parts, flex_obstacle
from flashar_cli.decoding.failures import OptimisationFailed
from flashar_cli.decoding.forked import forked_branch
from flashar_cli.decoding.forwards import Forwards
from flashar_cli.decoding.graphs import GraphedPlan
from flashar_cli.decoding.joined import joined_products
from flashar_cli.decoding.packed import can_pack, packed_linears
from flashar_cli.decoding.pixels import PixelDecoder
from flashar_cli.decoding.plan import DecodePlan, PlanKey
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import DECODING_KERNELS, attention_kernels
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.tokenizers.vq import VQTokenizer

Optimisation = Literal["eager", "graph", "forked", "compile", "flex", "packed"]
OPTIMISATIONS: tuple[Optimisation, ...] = ("eager", "graph", "forked", "compile", "flex", "packed")
GRAPHED: tuple[Optimisation, ...] = ("graph", "forked", "compile", "flex")


def obstacle(model: FlasharModel, optimisation: Optimisation) -> str | None:
    """What keeps a model, where and as it is, from an optimisation, in one line; None where nothing known does."""
    if optimisation in ("graph", "forked") and model.device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if optimisation == "forked" and model.branch is None:
        return "there is no vertical branch to run beside the backbone"
    if optimisation == "packed" and not can_pack(model):
        return "packed weights need float32 or bfloat16 on a CPU with oneDNN, not quantised"
    return flex_obstacle(model) if optimisation == "flex" else None


class Engine:
    """Decodes batches of one model. It must not be moved, cast, quantised or reloaded while its engine is in use.

    ``graph`` captures each key's first batch as CUDA graphs and replays them for the next ones; ``forked``, to be
    measured, is ``graph`` with the vertical branch on a second stream; ``compile`` runs embedding, blocks, norms,
    heads, gate and guidance through ``torch.compile`` first (on a CPU: without graphs); ``flex``, to be measured, is
    ``compile`` with FlexAttention in SDPA's place; ``packed``, for float32 and bfloat16 on a CPU, not quantised, keeps
    a second copy of the weights in the matrix kernels' own order. Where that can't be done ``explain`` gets the reason,
    one line, once, and decoding goes on eagerly, unless ``explain`` raises. Running out of memory is raised as it is.
    ``kernels`` are what SDPA may run. Raises FlasharError for an unknown optimisation.
    """

    def __init__(
        self,
        model: FlasharModel,
        tokenizer: VQTokenizer | None = None,
        optimisation: Optimisation = "eager",
        explain: Callable[[str], None] = lambda reason: None,
        kernels: Sequence[SDPBackend] = DECODING_KERNELS,
    ) -> None:
        if optimisation not in OPTIMISATIONS:
            raise FlasharError(f"--optimisation is {optimisation}; expected one of {', '.join(OPTIMISATIONS)}")
        self.model, self.tokenizer, self.optimisation = model, tokenizer, optimisation
        self.pixel_decoder = None if tokenizer is None else PixelDecoder(tokenizer, model.dtype)
        self._explain, self._kernels = explain, kernels
        self._forwards = Forwards([])
        self._captures = optimisation in GRAPHED and model.device.type == "cuda"
        self._plan: DecodePlan | None = None
        self._graphs: dict[PlanKey, GraphedPlan] = {}
        self._latest: GraphedPlan | None = None
        if reason := obstacle(model, optimisation):
            self._fall_back(reason)
        elif optimisation in ("compile", "flex"):
            self._forwards = compiled_parts(model, flex=optimisation == "flex")
        elif optimisation == "graph":
            self._forwards = Forwards(joined_products(model))
        elif optimisation == "forked":
            self._forwards = forked_branch(model)
        elif optimisation == "packed":
            self._forwards = packed_linears(model)

    @property
    def pads_batches(self) -> bool:
        """Whether a last, smaller batch is better decoded at full size than as a key of its own."""
        return self.optimisation in GRAPHED

    def plan(self, batch: int, order: Order, params: SamplingParams) -> DecodePlan:
        """The plan of a key, made at its first use. Without graphs only the latest is kept, for its memory."""
        key = PlanKey.of(self.model, batch, order, params.kind)
        if key in self._graphs:
            return self._graphs[key].plan
        if self._plan is None or self._plan.key != key:
            self._plan = None  # the memory of the one before, for the next
            self._plan = DecodePlan(self.model, key)
        return self._plan

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
        plan.load(conditions, params, uniform_BN)
        mark = on_prefix or (lambda: None)
        self._optimised(lambda: self._run(plan, mark))
        return plan.tokens()

    @torch.inference_mode()
    def pixels(self, codes_BHW: Tensor) -> Tensor:
        """Codes int64 [B, H, W] that ``decode`` drew -> float32 [B, 3, height, width], about [-1, 1], not clamped."""
        assert self.pixel_decoder is not None, "the engine was made without a tokenizer"
        if self._latest is not None and self._latest.codes_BHW.shape == codes_BHW.shape:
            return self._latest.pixels(codes_BHW)
        return self.pixel_decoder(codes_BHW)

    @torch.inference_mode()
    def teacher_forced(self, conditions: Conditions, order: Order, params: SamplingParams, codes_BHW: Tensor) -> Tensor:
        """Guided logits float32 [B, N, V], in the order, that ``decode`` would draw from if it had drawn these codes.

        Run step by step as ``decode`` runs, graphs aside, which replay the same operations.
        """
        plan = self.plan(len(conditions), order, params)
        plan.load(conditions, params, torch.zeros(len(conditions), len(order.cells)))
        codes_BN = order.from_raster(codes_BHW.to(self.model.device))
        logits: list[Tensor] = []
        self._optimised(lambda: logits.append(torch.cat(list(plan.teacher_forced(codes_BN)), dim=1)))
        return logits[-1]

    def warm(self, conditions: Conditions, order: Order, params: SamplingParams) -> None:
        """Decodes one batch of this size for nothing: plans, graphs and compiled code are ready afterwards."""
        codes = self.decode(conditions, order, params, torch.zeros(len(conditions), len(order.cells)))
        if self.tokenizer is not None:
            self.pixels(codes)

    def _optimised(self, work: Callable[[], None]) -> None:
        """Does ``work`` as the optimisation has it, or eagerly where that fails: all attention runs in here."""
        try:
            with attention_kernels(self._kernels), self._forwards.active():
                return work()
        except OptimisationFailed as error:
            self._fall_back(str(error))
        with attention_kernels(self._kernels):
            work()

    def _run(self, plan: DecodePlan, mark: Callable[[], None]) -> None:
        """Draws what was loaded into the plan."""
        if self._captures:
            self._latest = self._graphs_of(plan)
            self._latest.prefix()
            mark()
            self._latest.steps()
        else:
            plan.draw(0, plan.prefix(), lambda step, logits_BCV: mark())
            plan.advance(1, plan.key.order.num_steps)

    def _graphs_of(self, plan: DecodePlan) -> GraphedPlan:
        """The graphs of a plan, captured at its first use, which needs real inputs to warm up."""
        if plan.key not in self._graphs:
            self._graphs[plan.key] = GraphedPlan(plan, self._captured_pixels())
        return self._graphs[plan.key]

    def _captured_pixels(self) -> Callable[[Tensor], Tensor] | None:
        """What turns codes into pictures inside a graph: compiled where the blocks are."""
        if self.pixel_decoder is None or self.optimisation not in ("compile", "flex"):
            return self.pixel_decoder
        return self.pixel_decoder.compiled

    def _fall_back(self, reason: str) -> None:
        self.optimisation, self._forwards, self._captures = "eager", Forwards([]), False
        self._graphs.clear()
        self._latest = None
        self._explain(reason)
