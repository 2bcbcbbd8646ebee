"""The static plan of one batch: every buffer and table that decoding touches, made once, at fixed addresses.

Between ``load`` and ``tokens`` nothing waits for the device, no shape depends on data, and no table is made. So these
methods run eagerly and under CUDA graph capture alike.

Letters: B images, R rows (B, or 2B with guidance: conditional rows first), C cells of a step, P prefix tokens,
N = H*W cells, S = P + slots of the image, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.config import Sampling
from flashar_cli.decoding.decoder import PlanKey, StaticPlan, StepHook
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.targets import step_targets
from flashar_cli.nn.masks import with_valid_keys
from flashar_cli.nn.sampling import SamplingKind, SamplingValues, sample


class DecodePlan(StaticPlan):
    """The buffers and tables of one :class:`PlanKey` for one order. ``load`` copies inputs in, ``tokens`` reads the
    result.
    """

    @torch.inference_mode()
    def __init__(self, model: FlasharModel, key: PlanKey, order: Order) -> None:
        self.model: FlasharModel = model
        self.key, self.order, self.num_steps = key, order, order.num_steps
        device, batch = key.device, key.batch
        self.num_rows = 2 * batch if key.kind.guided else batch
        num_cells = len(order.cells)

        self.conditions = model.prefix.blank(batch, key.prefix_length)
        self.drop_B = torch.zeros(batch, dtype=torch.bool, device=device)
        self.keep_B = ~self.drop_B
        self.uniform_BN = torch.zeros(batch, num_cells, device=device)
        self.tokens_BN = torch.zeros(batch, num_cells, dtype=torch.int64, device=device)
        self.values = SamplingValues.of(Sampling(), device)
        self.cfg_scales = torch.ones(order.num_steps, device=device)  # of each step; 1 is no guidance
        self.cache = model.new_cache(self.num_rows, key.prefix_length, order.num_slots)

        # Kept here too: the functions' caches may drop them while a captured graph still reads them.
        self.rope = model.rope(order, key.prefix_length, None)
        self.prefix_mask = model.attention_mask(order, key.prefix_length, None, key.prefix_length)
        self.targets = [step_targets(order, step, device) for step in range(order.num_steps)]
        self.bounds = list(pairwise(order.step_starts))
        self.slot_bounds = list(pairwise(order.slot_starts))
        self.fed = [_index(positions, bounds, device) for positions, bounds in zip(order.fed, self.bounds, strict=True)]
        self.hidden_keys = [self._hidden_keys(step) for step in range(order.num_steps)]
        self.cells = torch.tensor(order.cells, device=device)
        self.positions = torch.tensor(order.positions, device=device)
        self.key_mask: Tensor | None = None
        if model.prefix.masks_keys:
            # Added to the scores; of a bool mask SDPA would make such a tensor in every layer. Its memory-efficient
            # kernel copies a mask unless each row starts at a multiple of 8 elements.
            length = -(-(key.prefix_length + order.num_slots) // 8) * 8
            self.key_mask = torch.zeros(self.num_rows, 1, 1, length, dtype=model.dtype, device=device)
            self.prefix_mask = self.prefix_mask.repeat(self.num_rows, 1, 1, 1)
            if model.config.backbone.rope == "1d":  # each row counts its own tokens
                self.rope = self.rope.repeat(self.num_rows, 1, 1, 1)

    @torch.inference_mode()
    def load(self, conditions: Conditions, sampling: Sampling, uniform_BN: Tensor) -> None:
        """Copies a batch's inputs into place; ``uniform_BN`` float32 [B, N] is in raster order."""
        assert SamplingKind.of(sampling) == self.key.kind, "a plan of another kind of sampling"
        for name, own in self.conditions.tensors.items():
            own.copy_(conditions.tensors[name])
        self.uniform_BN.copy_(uniform_BN.to(self.key.device).index_select(1, self.cells))
        self.values.fill(sampling)
        starts = [start for start, _ in self.bounds]
        self.cfg_scales.copy_(torch.tensor(sampling.step_scales(starts, len(self.order.cells))))
        self._load_valid_keys()

    def _load_valid_keys(self) -> None:
        """Puts in place which prefix tokens each row may attend to, and where in its text each token is."""
        prefix, guided, length = self.model.prefix, self.key.kind.guided, self.key.prefix_length
        valid_RP, starts_R = prefix.valid(self.conditions, self.drop_B), None
        if valid_RP is None or self.key_mask is None:
            return
        if guided:
            uncond_BP = prefix.valid(self.conditions, self.keep_B)
            assert uncond_BP is not None
            valid_RP = torch.cat([valid_RP, uncond_BP])
            starts_B = prefix.common_starts(self.conditions) if self.order.uses_branch else None
            starts_R = None if starts_B is None else starts_B.repeat(2)
        self.key_mask[..., :length] = torch.where(valid_RP, 0.0, -math.inf)[:, None, None]
        causal = self.model.attention_mask(self.order, length, None, length)
        self.prefix_mask.copy_(with_valid_keys(causal, valid_RP))
        if self.rope.ndim == 4:
            self.rope.copy_(self.model.rope(self.order, length, valid_RP, starts_R))

    def prefix(self) -> Tensor:
        model, length, targets = self.model, self.key.prefix_length, self.targets[0]
        x_RPD = model.prefix(self.conditions, self.drop_B)
        if self.key.kind.guided:
            x_RPD = torch.cat([x_RPD, model.prefix(self.conditions, self.keep_B)])
        rope, uses_branch = self.rope[..., :length, :, :], targets.uses_branch
        hidden = model.hidden_states(x_RPD, rope, self.prefix_mask, uses_branch, self.cache, num_prefix=length)
        return self._predict(0, hidden.since(-1))

    def step(self, step: int, tokens_RC: Tensor) -> Tensor:
        """Feeds the tokens of the previous step and predicts the cells of ``step``: logits [B, C, V] after guidance."""
        model, targets = self.model, self.targets[step]
        first, last = self.slot_bounds[step - 1]
        start, end = self.key.prefix_length + first, self.key.prefix_length + last
        line_end, hidden_keys = step - 1 in self.order.line_ends, self.hidden_keys[step - 1]
        # Every key stored so far is of this step or an earlier one, so image tokens need no mask in most orders.
        mask = None if self.key_mask is None else self.key_mask[..., :end]
        if hidden_keys is not None:
            mask = hidden_keys if mask is None else mask + hidden_keys
        if line_end and mask is not None:  # but the token before an end-of-line token must not see it
            mask = mask.repeat(1, 1, 2, 1)
            mask[..., 0, -1] = -math.inf
        x_RCD, rope = model.embed_step(tokens_RC, line_end), self.rope[..., start:end, :, :]
        hidden = model.hidden_states(x_RCD, rope, mask, targets.uses_branch, self.cache, start)
        return self._predict(step, hidden)

    def sample(self, step: int, logits_BCV: Tensor, on_step: StepHook | None = None) -> None:
        first, last = self.bounds[step]
        if on_step is not None:
            on_step(step, logits_BCV)
        self.tokens_BN[:, first:last] = sample(logits_BCV, self.uniform_BN[:, first:last], self.key.kind, self.values)

    def advance(self, first: int, last: int, on_step: StepHook | None = None) -> None:
        for step in range(first, last):
            self.sample(step, self.step(step, self._fed(step, self.tokens_BN)), on_step)

    def teacher_forced(self, tokens_BHW: Tensor) -> Iterator[Tensor]:
        tokens_BN = self.order.from_raster(tokens_BHW.to(self.key.device))
        yield self.prefix()
        for step in range(1, self.order.num_steps):
            yield self.step(step, self._fed(step, tokens_BN))

    def tokens(self) -> Tensor:
        grid = self.key.grid
        return self.tokens_BN.index_select(1, self.positions).unflatten(1, (grid.height, grid.width))

    def _fed(self, step: int, tokens_BN: Tensor) -> Tensor:
        """The tokens [R, C] that predict the cells of ``step``."""
        first, last = self.bounds[step - 1]
        index = self.fed[step - 1]
        tokens_BC = tokens_BN[:, first:last] if index is None else tokens_BN.index_select(1, index)
        return tokens_BC.repeat(2, 1) if self.key.kind.guided else tokens_BC

    def _hidden_keys(self, step: int) -> Tensor | None:
        """What is added to the scores of the tokens that are fed with a step, [C, P + slots so far]; None: nothing."""
        visible = self.order.visible(step)
        if visible is None:
            return None
        shown = torch.tensor(visible, device=self.key.device)
        added = torch.zeros(shown.shape, dtype=self.model.dtype, device=self.key.device).masked_fill(~shown, -math.inf)
        return F.pad(added, (self.key.prefix_length, 0))

    def _predict(self, step: int, hidden: HiddenStates) -> Tensor:
        scale = self.cfg_scales[step] if self.key.kind.guided else None
        return self.model.guided_logits(hidden, self.targets[step], scale)

    def buffers(self) -> list[Tensor]:
        own = [self.uniform_BN, self.tokens_BN, *self.values, self.cfg_scales, self.cache.memory]
        own += self.conditions.tensors.values()
        return own if self.key_mask is None else [*own, self.key_mask, self.prefix_mask, self.rope]


def _index(positions: list[int], bounds: tuple[int, int], device: torch.device) -> Tensor | None:
    """Positions as a tensor; None where they are all between the bounds."""
    return None if positions == list(range(*bounds)) else torch.tensor(positions, device=device)
