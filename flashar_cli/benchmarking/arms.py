"""What takes part in a bench: arms ``DECODER-LEVEL``, of the two registries, and a published sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import ModelConfig, RasterConfig
from flashar_cli.decoding.decoders import decoder_names, decoders_of, get_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.levels import LEVELS
from flashar_cli.decoding.static import FLASHAR, RASTER
from flashar_cli.errors import FlasharError
from flashar_cli.machine.launches import counted_calls
from flashar_cli.nn.attention import DECODING_KERNELS

UPSTREAM = "upstream"


@dataclass(frozen=True)
class Sampler:
    """An arm made ready for one batch.

    ``sample(mark)`` samples tokens [B, ..] and calls ``mark`` when the logits of the prefix are there; with
    ``marks_steps`` also when those of each further step are.
    """

    sample: Callable[[Callable[[], None]], Tensor]
    to_pixels: Callable[[Tensor], Tensor] | None  # None without a tokenizer
    forwards: nn.Module | int  # a module that every forward calls once, or their number where no hook sees them
    launches_seen: bool = True  # whether launches can be counted
    marks_steps: bool = False
    forwards_vary: bool = False  # with the sampled tokens, so that each run makes other images


def split_arm(name: str) -> tuple[str, str | None]:
    """``raster-eager`` -> (``raster``, ``eager``); ``upstream`` has no level."""
    if name == UPSTREAM:
        return name, None
    decoder, _, level = name.rpartition("-")
    return decoder, level


def our_arms(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, decoder and level of each arm that is not upstream's."""
    return [(name, decoder, level) for name in names for decoder, level in [split_arm(name)] if level is not None]


def check_arms(names: tuple[str, ...], device: torch.device, with_upstream: bool) -> tuple[str, ...]:
    """The arms of ``--arms``; upstream's comes first where it is there and not named.

    Raises FlasharError for an unknown arm, one that this device can't have, and one named twice.
    """
    for name in names:
        if name == UPSTREAM and not with_upstream:
            raise FlasharError(f"--arms names {UPSTREAM}; say with --upstream DIR where its clone is")
        if name != UPSTREAM and not is_known_arm(name):
            raise FlasharError(
                f"--arms names '{name}'; expected {UPSTREAM} or DECODER-LEVEL, of the decoders "
                f"{', '.join(decoder_names())} and the levels {', '.join(LEVELS)}"
            )
    for name, _, level in our_arms(names):
        kind = LEVELS[level].device
        if kind is not None and kind != device.type:
            raise FlasharError(f"--arms names {name}, which is for {kind} devices; this one is {device}")
    if len(set(names)) < len(names):
        raise FlasharError(f"--arms is '{','.join(names)}'; expected each arm once")
    return names if UPSTREAM in names or not with_upstream else (UPSTREAM, *names)


def is_known_arm(name: str) -> bool:
    """Whether an arm is one of ours, on any device."""
    decoder, level = split_arm(name)
    try:
        get_decoder(decoder)
    except FlasharError:
        return False
    return level in LEVELS


def default_arms(config: ModelConfig) -> tuple[str, ...]:
    """Raster and FlashAR of a base, which gets its branch later; else every decoder that the model was trained for."""
    if isinstance(config, RasterConfig) and config.diffusion is None:
        return f"{RASTER.name}-eager", f"{FLASHAR.name}-eager"
    return tuple(f"{decoder.name}-eager" for decoder in decoders_of(config))


def refuse_impossible(subject: BenchModel, names: Sequence[str]) -> None:
    """Raises FlasharError for an arm whose level is known to be impossible for this model."""
    for name, _, level in our_arms(names):
        reason = LEVELS[level].obstacle(subject.model)
        if reason is not None:
            raise FlasharError(f"--arms names {name}, which {subject.name} can't have here: {reason}")


def engine_of(subject: BenchModel, level: str, kernels: Sequence[SDPBackend] = DECODING_KERNELS) -> Engine:
    """The engine at a level of optimisation. Raises FlasharError where it would fall back to eager, then or later."""

    def refuse(reason: str) -> None:
        raise FlasharError(f"the level {level} can't be had for {subject.name} here: {reason}; leave its arms out")

    return Engine(subject.model, subject.tokenizer, level, refuse, kernels, subject.makes_pixels)


def prepare(subject: BenchModel, name: str, batch: Batch, kernels: Sequence[SDPBackend] = DECODING_KERNELS) -> Sampler:
    """An arm of ours, compiled and captured; SDPA may run ``kernels``. Raises FlasharError as ``engine_of``."""
    ((_, decoder_name, level),) = our_arms([name])
    engine, decoder = engine_of(subject, level, kernels), get_decoder(decoder_name)
    counted = subject.model.every_forward
    on_gpu = subject.model.device.type == "cuda"
    runs, forwards_vary = count(), decoder.num_forwards(subject.model.config, batch.grid) is None

    def sample(mark: Callable[[], None]) -> Tensor:
        uniform_BN = batch.uniform_of(next(runs)) if forwards_vary else batch.uniform_BN

        def on_step(step: int) -> None:
            if step == 0 or decoder.timed_by_step:
                mark()

        return engine.decode(decoder, batch.conditions, batch.sampling, uniform_BN, on_step, batch.grid)

    with counted_calls(counted, lambda: on_gpu and torch.cuda.is_current_stream_capturing()) as num_captured:
        sample(lambda: None)  # compiles and captures
    to_pixels = partial(engine.pixels, grid=batch.grid) if subject.makes_pixels else None
    # A replayed graph calls no module: its forwards are those that were captured. While operators are counted on a
    # CPU, PyTorch runs the original code of what was compiled.
    graphed = num_captured[0] > 0
    return Sampler(
        sample=sample,
        to_pixels=to_pixels,
        forwards=num_captured[0] or counted,
        launches_seen=on_gpu or not LEVELS[level].compiled,
        marks_steps=decoder.timed_by_step and not graphed,
        forwards_vary=forwards_vary,
    )
