"""How far each arm is from the same decoder run eagerly in float32, unquantised, on the same weights and one picture.

Letters: B images (here one), H rows, W columns, N = H*W cells in decoding order, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.benchmarking.arms import UPSTREAM, engine_of, split_arm
from flashar_cli.benchmarking.plan import Plan, example_conditions
from flashar_cli.benchmarking.reports.document import Agreement, PixelAgreement
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.benchmarking.summary import dtype_name
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.vq import VQTokenizer


@dataclass(frozen=True)
class Reference:
    """A decoder's greedy tokens int64 [B, H, W], its guided logits float32 [B, N, V] when they are fed to it, and the
    picture of the tokens, uint8 [B, h, w, 3], None without a tokenizer.
    """

    tokens_BHW: Tensor
    logits_BNV: Tensor
    picture: NDArray[np.uint8] | None


def our_arms(names: Sequence[str]) -> list[str]:
    """The arms that agreement is measured of: upstream's sampler has a check of its own."""
    return [name for name in names if name != UPSTREAM]


@torch.inference_mode()
def references(subject: BenchModel, plan: Plan) -> dict[str, Reference]:
    """What the plan's decoders answer in float32, by their names, kept on the CPU: the model itself can then be cast
    and quantised in place, so that no second one takes memory while arms are timed.
    """
    model = subject.model
    assert model.dtype == torch.float32 and not is_quantized(model), "the reference is plain float32"
    engine, found = Engine(model), {}
    for decoder in dict.fromkeys(split_arm(name)[0] for name in our_arms(plan.arms)):
        tokens_BHW = _greedy_tokens(engine, plan, choose_order(model, decoder))
        logits_BNV = _logits(engine, plan, choose_order(model, decoder), tokens_BHW)
        picture = None if subject.tokenizer is None else _picture(subject.tokenizer, tokens_BHW)
        found[decoder] = Reference(tokens_BHW.cpu(), logits_BNV.cpu(), picture)
    return found


@torch.inference_mode()
def agreements(subject: BenchModel, plan: Plan, found: dict[str, Reference]) -> tuple[Agreement, ...]:
    """Every arm of the plan against the reference of its decoder, on the grid that the model has.

    Raises FlasharError for an arm that this model can't have, and for logits that are not finite.
    """
    engines: dict[str, Engine] = {}  # both decoders of a level share what was compiled
    reports = []
    for name in our_arms(plan.arms):
        decoder, level = split_arm(name)
        assert level is not None
        if level not in engines:
            engines[level] = engine_of(subject, level)
        reports.append(_agreement(name, engines[level], plan, choose_order(subject.model, decoder), found[decoder]))
    return tuple(reports)


def _agreement(name: str, engine: Engine, plan: Plan, order: Order, reference: Reference) -> Agreement:
    # Decoding comes first: it is where an engine says that it can't have its optimisation.
    drawn_BHW = _greedy_tokens(engine, plan, order).cpu()
    logits_BNV = _logits(engine, plan, order, reference.tokens_BHW).cpu()
    if not bool(torch.isfinite(logits_BNV).all()):
        raise FlasharError(f"{name} has logits that are not finite in {engine.model.dtype}; use --dtype bfloat16")
    difference = (logits_BNV - reference.logits_BNV).abs()
    same_argmax = logits_BNV.argmax(dim=-1) == reference.logits_BNV.argmax(dim=-1)
    return Agreement(
        arm=name,
        grid=str(order.grid),
        num_cells=len(order.cells),
        greedy_agreement=same_argmax.double().mean().item(),
        mean_abs_difference=difference.mean(dtype=torch.float64).item(),
        max_abs_difference=difference.max().item(),
        drawn_agreement=(drawn_BHW == reference.tokens_BHW).double().mean().item(),
        pixels=None if reference.picture is None else _pixels(engine, reference.tokens_BHW, reference.picture),
    )


def _picture(tokenizer: VQTokenizer, tokens_BHW: Tensor) -> NDArray[np.uint8]:
    """In full float32: by default cuDNN's convolutions round their inputs to TensorFloat-32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return to_uint8(tokenizer.decode_unchecked(tokens_BHW))
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _pixels(engine: Engine, tokens_BHW: Tensor, expected: NDArray[np.uint8]) -> PixelAgreement:
    assert engine.pixel_decoder is not None, "the reference had a tokenizer"
    dtype, pictures = engine.pixel_decoder.dtype, engine.pixels(tokens_BHW)
    if not bool(torch.isfinite(pictures).all()):
        raise FlasharError(f"pixels in {dtype_name(dtype)} are not finite; use --dtype float32")
    return pixel_agreement(dtype, to_uint8(pictures), expected)


def pixel_agreement(dtype: torch.dtype, pictures: NDArray[np.uint8], expected: NDArray[np.uint8]) -> PixelAgreement:
    """Pictures uint8 [B, h, w, 3] that were decoded in ``dtype``, against those expected."""
    difference = np.abs(pictures.astype(np.int64) - expected)
    mean_square = float(np.square(difference).mean())
    return PixelAgreement(
        dtype=dtype_name(dtype),
        num_pixels=difference[..., 0].size,
        num_differing_pixels=int(difference.any(axis=-1).sum()),
        max_difference=int(difference.max()),
        psnr_db=None if mean_square == 0 else 10 * math.log10(255**2 / mean_square),
    )


def _greedy_tokens(engine: Engine, plan: Plan, order: Order) -> Tensor:
    conditions, params = _inputs(engine.model, plan)
    return engine.decode(conditions, order, params, torch.zeros(1, len(order.cells)))


def _logits(engine: Engine, plan: Plan, order: Order, tokens_BHW: Tensor) -> Tensor:
    conditions, params = _inputs(engine.model, plan)
    return engine.teacher_forced(conditions, order, params, tokens_BHW)


def _inputs(model: FlasharModel, plan: Plan) -> tuple[Conditions, SamplingParams]:
    """What the picture shows, and greedy sampling under the plan's guidance."""
    conditions = example_conditions(model.config, 1, plan.seed).to(model.device)
    return conditions, replace(plan.params, temperature=0.0)
