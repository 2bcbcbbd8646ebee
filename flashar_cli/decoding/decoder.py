"""Cached decoding in any order: prefix, then one forward a step. Raster and FlashAR differ only by the order.

Letters: B images, N = H*W cells, H grid rows, W grid columns, C cells of a step, V codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.decoding.plan import DecodePlan, PlanKey, StepHook
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import attention_kernels
from flashar_cli.nn.sampling import SamplingParams


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
    logits [B, C, V] after guidance and before temperature. Many batches of one size: ``engine.Engine``.
    """
    plan = DecodePlan(model, PlanKey.of(model, len(conditions), order, params.kind))
    return decode_with(plan, conditions, params, uniform_BN, on_step)


@torch.inference_mode()
def decode_with(
    plan: DecodePlan, conditions: Conditions, params: SamplingParams, uniform_BN: Tensor, on_step: StepHook | None
) -> Tensor:
    """``decode`` in the buffers of a plan."""
    plan.load(conditions, params, uniform_BN)
    with attention_kernels():
        plan.draw(0, plan.prefix(), on_step)
        plan.advance(1, plan.key.order.num_steps, on_step)
    return plan.tokens()
