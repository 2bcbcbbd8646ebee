"""One batch through a decoder's own plan: what every faster way is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.config import Sampling
from flashar_cli.decoding.decoder import Decoder, Plan, PlanKey, StepHook
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.static import FLASHAR, RASTER, StaticDecoder
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import attention_kernels
from flashar_cli.nn.sampling import SamplingKind

BY_ORDER: dict[str, StaticDecoder] = {"raster": RASTER, "diagonal": FLASHAR}


def by(order: Order) -> StaticDecoder:
    """The decoder of an order."""
    return BY_ORDER[order.name]


def key_of(
    model: FlasharModel, batch: int, order: Order, sampling: Sampling, prefix_length: int | None = None
) -> PlanKey:
    length = model.config.prefix.longest if prefix_length is None else prefix_length
    kind = SamplingKind.of(sampling)
    return PlanKey(by(order).name, batch, order.grid, length, kind, model.dtype, model.device)


def plan_of(model: FlasharModel, batch: int, order: Order, sampling: Sampling) -> DecodePlan:
    return by(order).plan(model, None, key_of(model, batch, order, sampling))


@torch.inference_mode()
def decode(
    model: FlasharModel,
    conditions: Conditions,
    order: Order | Decoder,
    sampling: Sampling,
    uniform_BN: Tensor,
    on_step: StepHook | None = None,
) -> Tensor:
    """Token grids int64 [B, H, W]."""
    decoder = by(order) if isinstance(order, Order) else order
    grid = order.grid if isinstance(order, Order) else None
    plan = decoder.plan(model, None, decoder.key(model, conditions, sampling, grid))
    return decode_with(plan, conditions, sampling, uniform_BN, on_step)


@torch.inference_mode()
def decode_with(
    plan: Plan, conditions: Conditions, sampling: Sampling, uniform_BN: Tensor, on_step: StepHook | None = None
) -> Tensor:
    """``decode`` in the buffers of a plan."""
    plan.load(conditions, sampling, uniform_BN)
    with attention_kernels():
        plan.run(on_step)
    return plan.tokens()
