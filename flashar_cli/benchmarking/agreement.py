"""How far each arm is from the same decoder run eagerly in float32, unquantised, on the same weights: one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.benchmarking.arms import engine_of, our_arms
from flashar_cli.benchmarking.plan import Batch, Plan
from flashar_cli.benchmarking.reports.document import Agreement, PixelAgreement
from flashar_cli.benchmarking.subject import BenchModel, dtype_name
from flashar_cli.decoding.decoders import get_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.pixels import pixel_decoder_of
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.pixels import to_uint8


@dataclass(frozen=True)
class Reference:
    """What a decoder answers in float32; B is 1."""

    tokens: Tensor  # [B, ..], greedy
    logits: Tensor | None  # float32 [B, C, V], guided, with those fed; None where steps depend on what is sampled
    image: NDArray[np.uint8] | None  # [B, h, w, 3]; None without a tokenizer


@torch.inference_mode()
def references(subject: BenchModel, plan: Plan) -> dict[str, Reference]:
    """The reference of each decoder of the plan, kept on the CPU, so that the model can be cast in place afterwards."""
    model = subject.model
    assert model.dtype == torch.float32 and not is_quantized(model), "the reference is plain float32"
    engine, found = Engine(model, subject.tokenizer), {}
    for decoder in dict.fromkeys(decoder for _, decoder, _ in our_arms(plan.arms)):
        tokens = _greedy_tokens(engine, plan, decoder)
        logits = _logits(engine, plan, decoder, tokens)
        found[decoder] = Reference(tokens.cpu(), logits, _image(subject, tokens, plan.grids[0]))
    return found


@torch.inference_mode()
def agreements(subject: BenchModel, plan: Plan, found: dict[str, Reference]) -> tuple[Agreement, ...]:
    """Every arm of the plan against the reference of its decoder, on the first grid. Raises FlasharError."""
    arms = our_arms(plan.arms)
    engines = {level: engine_of(subject, level) for _, _, level in arms}  # decoders of a level share compiled code
    return tuple(_agreement(name, engines[level], plan, decoder, found[decoder]) for name, decoder, level in arms)


def _agreement(name: str, engine: Engine, plan: Plan, decoder: str, reference: Reference) -> Agreement:
    # Decode first: that is where an engine refuses an optimisation that it can't have.
    sampled = _greedy_tokens(engine, plan, decoder).cpu()
    logits = _logits(engine, plan, decoder, reference.tokens)
    same_argmax = mean = largest = None
    if logits is not None and reference.logits is not None:
        if not bool(torch.isfinite(logits).all()):
            raise FlasharError(f"{name} has logits that are not finite in {engine.model.dtype}; use --dtype bfloat16")
        difference = (logits - reference.logits).abs()
        same_argmax = (logits.argmax(dim=-1) == reference.logits.argmax(dim=-1)).double().mean().item()
        mean, largest = difference.mean(dtype=torch.float64).item(), difference.max().item()
    return Agreement(
        arm=name,
        grid=str(plan.grids[0]),
        num_cells=reference.tokens.numel(),
        greedy_agreement=same_argmax,
        mean_abs_difference=mean,
        max_abs_difference=largest,
        drawn_agreement=(sampled == reference.tokens).double().mean().item(),
        pixels=None if reference.image is None else _pixels(engine, reference.tokens, plan.grids[0], reference.image),
    )


def _image(subject: BenchModel, tokens: Tensor, grid: Grid) -> NDArray[np.uint8] | None:
    if not subject.makes_pixels:
        return None
    # By default cuDNN's convolutions round their inputs to TensorFloat-32.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return to_uint8(pixel_decoder_of(subject.model, subject.tokenizer).plain(tokens, grid))
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _pixels(engine: Engine, tokens: Tensor, grid: Grid, expected: NDArray[np.uint8]) -> PixelAgreement:
    assert engine.pixel_decoder is not None, "the reference had a tokenizer"
    dtype, images = engine.pixel_decoder.dtype, engine.pixels(tokens, grid)
    if not bool(torch.isfinite(images).all()):
        raise FlasharError(f"pixels in {dtype_name(dtype)} are not finite; use --dtype float32")
    return pixel_agreement(dtype, to_uint8(images), expected)


def pixel_agreement(dtype: torch.dtype, images: NDArray[np.uint8], expected: NDArray[np.uint8]) -> PixelAgreement:
    """Images uint8 [B, h, w, 3] that were decoded in ``dtype``, against those expected."""
    difference = np.abs(images.astype(np.int64) - expected)
    mean_square = float(np.square(difference).mean())
    return PixelAgreement(
        dtype=dtype_name(dtype),
        num_pixels=difference[..., 0].size,
        num_differing_pixels=int(difference.any(axis=-1).sum()),
        max_difference=int(difference.max()),
        psnr_db=None if mean_square == 0 else 10 * math.log10(255**2 / mean_square),
    )


def _greedy_tokens(engine: Engine, plan: Plan, decoder: str) -> Tensor:
    batch = _greedy(engine, plan)
    return engine.decode(get_decoder(decoder), batch.conditions, batch.sampling, batch.uniform_BN, grid=batch.grid)


def _logits(engine: Engine, plan: Plan, decoder: str, tokens: Tensor) -> Tensor | None:
    batch = _greedy(engine, plan)
    logits = engine.teacher_forced(get_decoder(decoder), batch.conditions, batch.sampling, tokens, batch.grid)
    return None if logits is None else logits.cpu()


def _greedy(engine: Engine, plan: Plan) -> Batch:
    """One image, sampled greedily under the plan's guidance."""
    greedy = replace(plan, sampling=plan.sampling.changed(temperature=0.0))
    return Batch.of(greedy, engine.model, plan.grids[0], 1)
