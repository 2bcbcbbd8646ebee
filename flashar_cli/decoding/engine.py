"""Decoding many batches: takes conditions, finds or makes their plan, samples tokens, turns tokens into pixels.

Letters: B images, N = H*W cells, H grid rows, W grid columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from flashar_cli.config import Sampling
from flashar_cli.decoding.decoder import Decoder, Plan, PlanKey
from flashar_cli.decoding.failures import OptimisationFailed
from flashar_cli.decoding.graphs import GraphedPlan
from flashar_cli.decoding.levels import LEVELS, get_level
from flashar_cli.decoding.pixels import PixelDecoder
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import DECODING_KERNELS, attention_kernels
from flashar_cli.tokenizers import ImageTokenizer


class Engine:
    """Decodes batches of one model by any decoder. The model must not be moved, cast, quantised or reloaded while its
    engine is in use.

    ``optimisation`` is a level of ``levels.LEVELS``. On CUDA a graphed level captures the first batch of each key of a
    static decoder and replays it for later ones. Where the level cannot run here, the engine tells ``explain`` the
    reason once, in one line, and falls back to eager decoding, unless ``explain`` raises. Running out of memory is
    raised as it is. ``kernels`` are those that SDPA may run. Raises FlasharError for an unknown level.
    """

    def __init__(
        self,
        model: FlasharModel,
        tokenizer: ImageTokenizer | None = None,
        optimisation: str = "eager",
        explain: Callable[[str], None] = lambda reason: None,
        kernels: Sequence[SDPBackend] = DECODING_KERNELS,
    ) -> None:
        self.level = get_level(optimisation)
        self.model, self.tokenizer = model, tokenizer
        self.pixel_decoder = None if tokenizer is None else PixelDecoder(tokenizer, model.dtype)
        self._explain, self._kernels = explain, kernels
        self._plan: Plan | None = None
        self._graphs: dict[PlanKey, GraphedPlan] = {}
        self._latest: GraphedPlan | None = None
        if reason := self.level.obstacle(model):
            self._fall_back(reason)
        else:
            self._forwards = self.level.parts(model)

    @property
    def optimisation(self) -> str:
        """The level at which batches are decoded: ``eager`` after a fall-back."""
        return self.level.name

    @property
    def pads_batches(self) -> bool:
        """Whether to decode a last, smaller batch at full size: one of its own size would be captured or compiled."""
        return self.level.graphed

    @property
    def _captures(self) -> bool:
        return self.level.graphed and self.model.device.type == "cuda"

    def plan(self, decoder: Decoder, key: PlanKey) -> Plan:
        """The plan of a key, made at its first use. Without graphs only the latest plan is kept, to save memory."""
        if key in self._graphs:
            return self._graphs[key].plan
        if self._plan is None or self._plan.key != key:
            self._plan = None  # frees its memory for the next
            self._plan = decoder.plan(self.model, key)
        return self._plan

    @torch.inference_mode()
    def decode(
        self,
        decoder: Decoder,
        conditions: Conditions,
        sampling: Sampling,
        uniform_BN: Tensor,
        on_prefix: Callable[[], None] | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Samples one token grid per condition, int64 [B, H, W]. ``uniform_BN`` float32 [B, N] in raster order feeds
        the sampling; ``on_prefix`` is called once the prefix and the logits of step 0 are enqueued; ``grid`` None: the
        model's own.
        """
        plan = self.plan(decoder, decoder.key(self.model, conditions, sampling, grid))
        plan.load(conditions, sampling, uniform_BN)
        mark = on_prefix or (lambda: None)
        self._optimised(lambda: self._run(plan, mark))
        return plan.tokens()

    @torch.inference_mode()
    def pixels(self, tokens_BHW: Tensor) -> Tensor:
        """Tokens int64 [B, H, W] of ``decode`` -> float32 [B, 3, height, width], about [-1, 1], not clamped."""
        assert self.pixel_decoder is not None, "the engine was made without a tokenizer"
        if self._latest is not None and self._latest.tokens_BHW.shape == tokens_BHW.shape:
            return self._latest.pixels(tokens_BHW)
        return self.pixel_decoder(tokens_BHW)

    @torch.inference_mode()
    def teacher_forced(
        self, decoder: Decoder, conditions: Conditions, sampling: Sampling, tokens_BHW: Tensor
    ) -> Tensor | None:
        """The guided logits float32 [B, N, V], in decoding order, from which ``decode`` would sample if it had sampled
        these tokens; None for a decoder whose steps depend on the sampled tokens.

        Runs step by step as ``decode`` does, but without graphs, which would replay the same operations.
        """
        grid = Grid(*tokens_BHW.shape[1:])
        plan = self.plan(decoder, decoder.key(self.model, conditions, sampling, grid))
        if not isinstance(plan, DecodePlan):
            return None
        plan.load(conditions, sampling, torch.zeros(len(conditions), grid.num_cells))
        tokens_BN = plan.order.from_raster(tokens_BHW.to(self.model.device))
        logits: list[Tensor] = []
        self._optimised(lambda: logits.append(torch.cat(list(plan.teacher_forced(tokens_BN)), dim=1)))
        return logits[-1]

    def warm(self, decoder: Decoder, conditions: Conditions, sampling: Sampling, grid: Grid | None = None) -> None:
        """Decodes one batch of this size so that plans, graphs and compiled code are ready."""
        num_cells = (grid or self.model.config.order_grid).num_cells
        tokens = self.decode(decoder, conditions, sampling, torch.zeros(len(conditions), num_cells), grid=grid)
        if self.tokenizer is not None:
            self.pixels(tokens)

    def _optimised(self, work: Callable[[], None]) -> None:
        """Runs ``work`` at the engine's level, or eagerly where that fails. All attention runs in here."""
        try:
            with attention_kernels(self._kernels), self._forwards.active():
                return work()
        except OptimisationFailed as error:
            self._fall_back(str(error))
        with attention_kernels(self._kernels):
            work()

    def _run(self, plan: Plan, mark: Callable[[], None]) -> None:
        """Samples a loaded plan; ``mark`` is called after the prefix."""
        if self._captures and isinstance(plan, DecodePlan):
            self._latest = self._graphs_of(plan)
            self._latest.prefix()
            mark()
            self._latest.steps()
        else:
            plan.run(lambda step, logits_BCV: mark() if step == 0 else None)

    def _graphs_of(self, plan: DecodePlan) -> GraphedPlan:
        """The graphs of a loaded plan, captured at its first use: warming up needs real inputs."""
        if plan.key not in self._graphs:
            self._graphs[plan.key] = GraphedPlan(plan, self._captured_pixels())
        return self._graphs[plan.key]

    def _captured_pixels(self) -> Callable[[Tensor], Tensor] | None:
        """What turns tokens into images inside a graph: compiled where the blocks are."""
        if self.pixel_decoder is None or not self.level.compiled:
            return self.pixel_decoder
        return self.pixel_decoder.compiled

    def _fall_back(self, reason: str) -> None:
        self.level = LEVELS["eager"]
        self._forwards = self.level.parts(self.model)
        self._graphs.clear()
        self._latest = None
        self._explain(reason)
