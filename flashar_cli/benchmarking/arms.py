"""What takes part in a bench: decoders at levels of optimisation, and the one table of those levels.

Letters: B images, H rows, W columns, N = H*W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from flashar_cli.benchmarking.launches import counted_calls
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.engine import Engine, Optimisation, obstacle
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import DECODING_KERNELS
from flashar_cli.nn.sampling import SamplingParams

DECODERS = ("raster", "flashar")
UPSTREAM = "upstream"


@dataclass(frozen=True)
class Sampler:
    """An arm made ready for one batch.

    ``draw(mark)`` draws int64 [B, H, W] and calls ``mark`` once, when the logits of the prefix are there. ``to_pixels``
    turns them into pictures, None where the model has no tokenizer. ``forwards`` is a module that every forward calls
    once, counted while it runs; or their number, where no hook sees them. ``launches_seen``: they can be counted.
    """

    draw: Callable[[Callable[[], None]], Tensor]
    to_pixels: Callable[[Tensor], Tensor] | None
    forwards: nn.Module | int
    launches_seen: bool = True


# From the slowest to the fastest on a GPU, as far as is known, and the kind of device that a level is for (None: any).
# Only eager arms are benched without being named, as eager is what `generate` does without being told.
LEVELS: dict[Optimisation, str | None] = {
    "eager": None,
    "packed": "cpu",
    "flex": None,
    "graph": "cuda",
    "forked": "cuda",
    "compile": None,
}
DEFAULT_ARMS = ("raster-eager", "flashar-eager")


def prepare(
    subject: BenchModel,
    level: Optimisation,
    order: Order,
    conditions: Conditions,
    params: SamplingParams,
    uniform_BN: Tensor,
    kernels: Sequence[SDPBackend] = DECODING_KERNELS,
) -> Sampler:
    """The decoder as ``generate --optimisation`` runs it, compiled and captured; ``kernels`` are what SDPA may run.

    Raises FlasharError where it would fall back to eager.
    """
    engine, block = engine_of(subject, level, kernels), subject.model.backbone.blocks[0]
    on_gpu = subject.model.device.type == "cuda"
    with counted_calls(block, lambda: on_gpu and torch.cuda.is_current_stream_capturing()) as num_captured:
        engine.decode(conditions, order, params, uniform_BN)  # compiles and captures

    def draw(mark: Callable[[], None]) -> Tensor:
        return engine.decode(conditions, order, params, uniform_BN, mark)

    to_pixels = None if subject.tokenizer is None else engine.pixels
    # A replayed graph calls no module: its forwards are those that were captured. What counts operators on a CPU makes
    # PyTorch run compiled code as it was before.
    launches_seen = on_gpu or level not in ("compile", "flex")
    return Sampler(draw, to_pixels, num_captured[0] or block, launches_seen)


def engine_of(subject: BenchModel, level: Optimisation, kernels: Sequence[SDPBackend] = DECODING_KERNELS) -> Engine:
    """The decoder at a level of optimisation. Raises FlasharError where it would fall back to eager, then or later."""

    def refuse(reason: str) -> None:
        raise FlasharError(f"the level {level} can't be had for {subject.name} here: {reason}; leave its arms out")

    return Engine(subject.model, subject.tokenizer, level, refuse, kernels)


def refuse_impossible(subject: BenchModel, names: Sequence[str]) -> None:
    """Raises FlasharError for an arm that this model, as it is to be benched, is known not to have."""
    for name in names:
        _, level = split_arm(name)
        reason = obstacle(subject.model, level) if level else None
        if reason is not None:
            raise FlasharError(f"--arms names {name}, which {subject.name} can't have here: {reason}")


def pixels_of(subject: BenchModel) -> Callable[[Tensor], Tensor] | None:
    """Token decode as the published samplers have it: float32, eager, no check of the codes."""
    return None if subject.tokenizer is None else subject.tokenizer.decode_unchecked


def split_arm(name: str) -> tuple[str, Optimisation | None]:
    """``raster-eager`` -> (``raster``, ``eager``); ``upstream`` has no level."""
    decoder, _, level = name.partition("-")
    return decoder, cast(Optimisation, level) if level else None


def choose_arms(text: str | None, device: torch.device, with_upstream: bool) -> tuple[str, ...]:
    """The arms of ``--arms A,B,..``, or both decoders eagerly; upstream comes first where it is not named.

    Raises FlasharError for an unknown arm, one that this device can't have, and one named twice.
    """
    if text is None:
        return ((UPSTREAM,) if with_upstream else ()) + DEFAULT_ARMS
    names = tuple(part.strip() for part in text.split(","))
    known = [f"{decoder}-{level}" for level in LEVELS for decoder in DECODERS]
    for name in names:
        if name == UPSTREAM and not with_upstream:
            raise FlasharError(f"--arms names {UPSTREAM}; say with --upstream DIR where its clone is")
        if name != UPSTREAM and name not in known:
            raise FlasharError(f"--arms names '{name}'; expected some of {', '.join([*known, UPSTREAM])}")
        _, level = split_arm(name)
        kind = LEVELS[level] if level else None
        if kind is not None and kind != device.type:
            raise FlasharError(f"--arms names {name}, which is for {kind} devices; this one is {device}")
    if len(set(names)) < len(names):
        raise FlasharError(f"--arms is '{text}'; expected each arm once")
    return names if UPSTREAM in names or not with_upstream else (UPSTREAM, *names)
