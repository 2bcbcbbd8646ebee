"""What takes part in a bench: decoders at levels of optimisation, and the one table of those levels.

Letters: B images, H rows, W columns, N = H*W cells.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.decoder import decode
from flashar_cli.decoding.engine import Engine, Optimisation
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.prefix import Conditions
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


Prepare = Callable[[BenchModel, Order, Conditions, SamplingParams, Tensor], Sampler]


@dataclass(frozen=True)
class Level:
    """One level of optimisation. ``prepare(subject, order, conditions, params, uniform_BN)`` may compile and capture;
    ``obstacle`` says in one line why a device can't have the level, or nothing. ``by_default`` levels are benched
    without being asked for.
    """

    prepare: Prepare
    obstacle: Callable[[torch.device], str | None]
    by_default: bool = True


def eager(
    subject: BenchModel, order: Order, conditions: Conditions, params: SamplingParams, uniform_BN: Tensor
) -> Sampler:
    """The decoder as it is, one launch an operator."""
    model = subject.model

    def draw(mark: Callable[[], None]) -> Tensor:
        def on_step(step: int, logits: Tensor) -> None:
            if step == 0:
                mark()

        return decode(model, conditions, order, params, uniform_BN, on_step)

    return Sampler(draw, pixels_of(subject), model.backbone.blocks[0])


def through_engine(optimisation: Optimisation) -> Prepare:
    """The decoder as ``generate --optimisation`` runs it. Raises FlasharError where it would fall back to eager."""

    def prepare(
        subject: BenchModel, order: Order, conditions: Conditions, params: SamplingParams, uniform_BN: Tensor
    ) -> Sampler:
        engine = engine_of(subject, optimisation)
        engine.decode(conditions, order, params, uniform_BN)  # compiles and captures

        def draw(mark: Callable[[], None]) -> Tensor:
            return engine.decode(conditions, order, params, uniform_BN, mark)

        on_gpu = subject.model.device.type == "cuda"
        # A replayed graph calls no module, so nothing can count its forwards.
        forwards = order.num_steps if on_gpu else subject.model.backbone.blocks[0]
        # What counts operators on a CPU makes PyTorch run compiled code as it was before.
        launches_seen = on_gpu or optimisation not in ("compile", "flex")
        return Sampler(draw, None if subject.tokenizer is None else engine.pixels, forwards, launches_seen)

    return prepare


def engine_of(subject: BenchModel, level: str) -> Engine:
    """The decoder at a level of optimisation. Raises FlasharError where it would fall back to eager, then or later."""
    return Engine(subject.model, subject.tokenizer, cast(Optimisation, level), _refuse)


def _refuse(line: str) -> None:
    # The engine explains inside the `except` of what went wrong. What ends a sweep of batch sizes goes up as it is.
    error = sys.exception()
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    raise FlasharError(line)


def pixels_of(subject: BenchModel) -> Callable[[Tensor], Tensor] | None:
    """Token decode without a check of the codes, which a model draws in range: a check would wait for the device."""
    return None if subject.tokenizer is None else subject.tokenizer.decode_unchecked


def _only_on(kind: str) -> Callable[[torch.device], str | None]:
    return lambda device: None if device.type == kind else f"it is for {kind} devices"


# From the slowest to the fastest: without --arms the last one that the device can have is benched. Those that --arms
# has to name take a second copy of the weights, or were never measured on a GPU.
LEVELS: dict[str, Level] = {
    "eager": Level(eager, lambda device: None),
    "packed": Level(through_engine("packed"), _only_on("cpu"), by_default=False),
    "flex": Level(through_engine("flex"), lambda device: None, by_default=False),
    "compile": Level(through_engine("compile"), lambda device: None, by_default=False),
    "graph": Level(through_engine("graph"), _only_on("cuda"), by_default=False),
}


def default_arms(device: torch.device) -> tuple[str, ...]:
    """Both decoders at the best level of this device."""
    best = [name for name, level in LEVELS.items() if level.by_default and level.obstacle(device) is None][-1]
    return tuple(f"{decoder}-{best}" for decoder in DECODERS)


def split_arm(name: str) -> tuple[str, str | None]:
    """``raster-eager`` -> (``raster``, ``eager``); ``upstream`` has no level."""
    decoder, _, level = name.partition("-")
    return decoder, level or None


def choose_arms(text: str | None, device: torch.device, with_upstream: bool) -> tuple[str, ...]:
    """The arms of ``--arms A,B,..``, or both decoders at their best; upstream comes first where it is not named.

    Raises FlasharError for an unknown arm, one that this device can't have, and one named twice.
    """
    if text is None:
        return ((UPSTREAM,) if with_upstream else ()) + default_arms(device)
    names = tuple(part.strip() for part in text.split(","))
    known = [f"{decoder}-{level}" for level in LEVELS for decoder in DECODERS]
    for name in names:
        if name == UPSTREAM and not with_upstream:
            raise FlasharError(f"--arms names {UPSTREAM}; say with --upstream DIR where its clone is")
        if name != UPSTREAM and name not in known:
            raise FlasharError(f"--arms names '{name}'; expected some of {', '.join([*known, UPSTREAM])}")
        _, level = split_arm(name)
        obstacle = LEVELS[level].obstacle(device) if level else None
        if obstacle is not None:
            raise FlasharError(f"--arms names {name}, which this machine can't have: {obstacle}")
    if len(set(names)) < len(names):
        raise FlasharError(f"--arms is '{text}'; expected each arm once")
    return names if UPSTREAM in names or not with_upstream else (UPSTREAM, *names)
