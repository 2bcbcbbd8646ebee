"""Decoding many batches: takes conditions, finds or makes their plan, samples tokens, turns tokens into pixels.

Letters: B images, C cells of a step, V options of a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from flashar_cli.config import Sampling
from flashar_cli.decoding.decoder import Decoder, Plan, PlanKey, StaticPlan
from flashar_cli.decoding.failures import OptimisationFailed
from flashar_cli.decoding.graphs import GraphedPlan
from flashar_cli.decoding.levels import LEVELS, get_level
from flashar_cli.decoding.pixels import PixelDecoder, pixel_decoder_of
from flashar_cli.grid import Grid
from flashar_cli.models.base import TokenModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import DECODING_KERNELS, attention_kernels


class Engine:
    """Decodes batches of one model by any decoder. The model must not be moved, cast, quantised or reloaded while its
    engine is in use.

    ``optimisation`` is a level of ``levels.LEVELS``. On CUDA a graphed level captures the first batch of each key of a
    static decoder and replays it for later ones. Where the level cannot run here, the engine tells ``explain`` the
    reason once, in one line, and falls back to eager decoding, unless ``explain`` raises. Running out of memory is
    raised as it is. ``kernels`` are those that SDPA may run. Without ``with_pixels`` only tokens are made; those of a
    next-scale model need the tokenizer all the same. Raises FlasharError for an unknown level.
    """

    def __init__(
        self,
        model: TokenModel,
        tokenizer: Any = None,
        optimisation: str = "eager",
        explain: Callable[[str], None] = lambda reason: None,
        kernels: Sequence[SDPBackend] = DECODING_KERNELS,
        with_pixels: bool = True,
    ) -> None:
        self.level = get_level(optimisation)
        self.model, self.tokenizer = model, tokenizer
        self.pixel_decoder: PixelDecoder | None = None
        if with_pixels and tokenizer is not None:
            self.pixel_decoder = pixel_decoder_of(model, tokenizer)
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
            self._plan = decoder.plan(self.model, self.tokenizer, key)
        return self._plan

    @torch.inference_mode()
    def decode(
        self,
        decoder: Decoder,
        conditions: Conditions,
        sampling: Sampling,
        uniform: Tensor,
        on_step: Callable[[int], None] = lambda step: None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Samples the tokens of one image per condition, [B, ..] of the decoder's ``token_shape``. ``uniform`` float32
        [B, draws], as many as the config says, feeds the sampling; ``on_step`` is called with the number of each step
        once its logits are enqueued, those of step 0 with the prefix, and from graphs with that alone; ``grid`` None:
        the model's own.
        """
        plan = self.plan(decoder, decoder.key(self.model, conditions, sampling, grid))
        plan.load(conditions, sampling, uniform)
        self._optimised(lambda: self._run(plan, on_step))
        return plan.tokens()

    @torch.inference_mode()
    def pixels(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokens of ``decode``, of images of a grid -> float32 [B, 3, height, width], about [-1, 1], not clamped."""
        assert self.pixel_decoder is not None, "the engine was made without pixels"
        latest = self._latest
        if latest is not None and latest.tokens.shape == tokens.shape and grid in (None, latest.plan.key.grid):
            return latest.pixels(tokens)
        return self.pixel_decoder(tokens, grid)

    @torch.inference_mode()
    def teacher_forced(
        self, decoder: Decoder, conditions: Conditions, sampling: Sampling, tokens: Tensor, grid: Grid | None = None
    ) -> Tensor | None:
        """The guided logits float32 [B, C, V] of all cells, in decoding order, from which ``decode`` would sample if it
        had sampled these tokens; None for a decoder whose steps depend on the sampled tokens.

        Runs step by step as ``decode`` does, but without graphs, which would replay the same operations.
        """
        plan = self.plan(decoder, decoder.key(self.model, conditions, sampling, grid))
        if not isinstance(plan, StaticPlan):
            return None
        plan.load(conditions, sampling, torch.zeros(len(conditions), self.model.config.num_draws(plan.key.grid)))
        logits: list[Tensor] = []
        self._optimised(lambda: logits.append(torch.cat(list(plan.teacher_forced(tokens)), dim=1)))
        return logits[-1]

    def warm(self, decoder: Decoder, conditions: Conditions, sampling: Sampling, grid: Grid | None = None) -> None:
        """Decodes one batch of this size so that plans, graphs and compiled code are ready."""
        size = grid or self.model.config.order_grid
        uniform = torch.zeros(len(conditions), self.model.config.num_draws(size))
        tokens = self.decode(decoder, conditions, sampling, uniform, grid=size)
        if self.pixel_decoder is not None:
            self.pixels(tokens, size)

    def _optimised(self, work: Callable[[], None]) -> None:
        """Runs ``work`` at the engine's level, or eagerly where that fails. All attention runs in here."""
        try:
            with attention_kernels(self._kernels), self._forwards.active():
                return work()
        except OptimisationFailed as error:
            self._fall_back(str(error))
        with attention_kernels(self._kernels):
            work()

    def _run(self, plan: Plan, on_step: Callable[[int], None]) -> None:
        """Samples a loaded plan; ``on_step`` as in ``decode``."""
        if self._captures and isinstance(plan, StaticPlan):
            self._latest = self._graphs_of(plan)
            self._latest.prefix()
            on_step(0)
            self._latest.steps()
        elif self._captures:
            raise OptimisationFailed(
                f"the steps of {plan.key.decoder} depend on the sampled tokens, which a CUDA graph can't follow"
            )
        else:
            plan.run(lambda step, logits_BCV: on_step(step))

    def _graphs_of(self, plan: StaticPlan) -> GraphedPlan:
        """The graphs of a loaded plan, captured at its first use: warming up needs real inputs."""
        if plan.key not in self._graphs:
            self._graphs[plan.key] = GraphedPlan(plan, self._captured_pixels(plan.key.grid))
        return self._graphs[plan.key]

    def _captured_pixels(self, grid: Grid) -> Callable[[Tensor], Tensor] | None:
        """What turns tokens into images inside a graph: compiled where the blocks are."""
        if self.pixel_decoder is None:
            return None
        return partial(self.pixel_decoder.compiled if self.level.compiled else self.pixel_decoder, grid=grid)

    def _fall_back(self, reason: str) -> None:
        self.level = LEVELS["eager"]
        self._forwards = self.level.parts(self.model)
        self._graphs.clear()
        self._latest = None
        self._explain(reason)
