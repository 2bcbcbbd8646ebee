"""Cached decoding in any order: prefix, then one forward a step. Raster and FlashAR differ only by the order.

Letters: B images, R rows (B, or 2B with guidance: conditional rows first), C cells of a step, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.targets import step_targets
from flashar_cli.nn.kv_cache import KVCache
from flashar_cli.nn.sampling import SamplingParams, guide, sample

StepHook = Callable[[int, Tensor], None]


@dataclass
class DecodeState:
    """What one batch carries from step to step."""

    model: FlasharModel
    order: Order
    rope: Tensor
    cache: KVCache
    key_mask: Tensor | None
    use_branch: bool


def choose_order(model: FlasharModel, decoder: str | None) -> Order:
    """The order of a decoder's name: ``raster``, ``flashar``, or None for flashar where the model has a branch."""
    grid = model.config.order_grid
    if decoder is None:
        decoder = "flashar" if model.branch else "raster"
    if decoder == "raster":
        return grid.raster()
    if decoder != "flashar":
        raise FlasharError(f"unknown decoder '{decoder}'; expected raster or flashar")
    if model.branch is None:
        raise FlasharError("this model has no vertical branch; use --decoder raster, or adapt it with `flashar adapt`")
    return grid.diagonal()


@torch.inference_mode()
def decode(
    model: FlasharModel,
    conditions: Conditions,
    order: Order,
    params: SamplingParams,
    uniform_BN: Tensor,
    on_step: StepHook | None = None,
) -> Tensor:
    """Draws one token grid per condition, int64 [B, H, W].

    ``uniform_BN`` float32 [B, N] in raster order feeds the sampling. ``on_step(step, logits)`` sees each step's
    logits [B, C, V] after guidance and before temperature.
    """
    uniform_BN = uniform_BN.to(model.device)[:, order.cells]
    state, logits = prefill(model, conditions.to(model.device), order, params.guided)
    starts = order.step_starts
    steps: list[Tensor] = []
    for step in range(order.num_steps):
        start, end = starts[step], starts[step + 1]
        if step > 0:
            logits = decode_step(state, step, steps[-1].repeat(2, 1) if params.guided else steps[-1])
        logits_BCV = combine(logits, params, start, len(order.cells))
        if on_step is not None:
            on_step(step, logits_BCV)
        steps.append(sample(logits_BCV, uniform_BN[:, start:end], params))
    return order.to_raster(torch.cat(steps, dim=1))


def prefill(model: FlasharModel, conditions: Conditions, order: Order, guided: bool) -> tuple[DecodeState, Tensor]:
    """Runs the prefix and predicts the cells of step 0: a fresh state and logits [R, C, V]."""
    num_images = len(conditions)
    drop = torch.zeros(num_images, dtype=torch.bool, device=model.device)
    prefix_RPD, valid_RP = model.prefix(conditions, drop)
    if guided:
        uncond_BPD, _ = model.prefix(conditions, ~drop)
        prefix_RPD = torch.cat([prefix_RPD, uncond_BPD])
        valid_RP = None if valid_RP is None else valid_RP.repeat(2, 1)
    num_rows, length, _ = prefix_RPD.shape

    key_mask = None
    if valid_RP is not None:
        image = valid_RP.new_ones(num_rows, len(order.cells))
        key_mask = torch.cat([valid_RP, image], dim=1)[:, None, None]

    targets = step_targets(order, 0, model.device)
    state = DecodeState(model, order, model.rope(order), model.new_cache(num_rows), key_mask, targets.uses_branch)
    mask = model.attention_mask(order, valid_RP, length)
    hidden = model.hidden_states(prefix_RPD, state.rope[:length], mask, state.use_branch, state.cache)
    return state, model.fuse(hidden.since(-1), targets).logits


def decode_step(state: DecodeState, step: int, codes_RC: Tensor) -> Tensor:
    """Feeds the codes of the step before and predicts the cells of ``step``: logits [R, C, V]."""
    model, order = state.model, state.order
    start = model.config.prefix.length + order.step_starts[step - 1]
    end = start + codes_RC.shape[1]
    # Every key stored so far is at or before this step, so no mask is needed among image tokens.
    mask = None if state.key_mask is None else state.key_mask[..., :end]
    x_RCD = model.backbone.embedding(codes_RC)
    hidden = model.hidden_states(x_RCD, state.rope[start:end], mask, state.use_branch, state.cache, start)
    return model.fuse(hidden, step_targets(order, step, model.device)).logits


def combine(logits: Tensor, params: SamplingParams, position: int, num_cells: int) -> Tensor:
    """Guidance: logits [R, C, V] -> [B, C, V] for the step that starts at this position of the order."""
    if not params.guided:
        return logits
    cond, uncond = logits.chunk(2)
    return guide(cond, uncond, params.cfg_scale) if params.guides_cell(position, num_cells) else cond
