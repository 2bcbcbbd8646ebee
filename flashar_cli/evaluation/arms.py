"""What is evaluated: models, each under its decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashar_cli.api import ImageModel, load
from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.config import ModelConfig, Pruning, read_config
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.judges import choose_judge
from flashar_cli.evaluation.judges.base import Judge
from flashar_cli.generation.job import GenerateJob, Wanted, plan_job


@dataclass(frozen=True)
class Asked:
    """What was asked for. ``decoders``: by name; none: the default of each model. ``num_images``: None: as many as the
    judge takes.
    """

    models: Sequence[str]
    decoders: Sequence[str]
    judge: Judge | None
    num_images: int | None
    choose_pruning: Callable[[ModelConfig], Pruning | None]
    sampling: Mapping[str, Any]
    seed: int
    batch_size: int
    optimisation: str


@dataclass(frozen=True)
class Arm:
    """A model under a decoder. ``name`` tells it from other arms; ``judge`` and ``job`` are None where nobody knows how
    its samples should look.
    """

    name: str
    model: str
    weights_sha256: str
    loaded: ImageModel
    decoder: Decoder
    judge: Judge | None
    job: GenerateJob | None


def plan_arms(asked: Asked, device: torch.device, dtype: torch.dtype, explain: Callable[[str], None]) -> list[Arm]:
    """Checks that the models can do what was asked for, and loads them. Raises FlasharError."""
    for name in asked.models:
        config = read_config(hub.resolve(name))
        for decoder in asked.decoders:
            choose_decoder(config, decoder)
    arms: list[Arm] = []
    for name in asked.models:
        chosen: Sequence[str | None] = asked.decoders or (None,)
        for decoder_name in chosen:
            arm = _plan_arm(name, decoder_name, asked, device, dtype, explain)
            for other in arms:
                if arm.name == other.name and arm.model != other.model:
                    raise FlasharError(
                        f"{arm.model} and {other.model} would both be called {arm.name}; give their folders other names"
                    )
                if arm.name == other.name:
                    raise FlasharError(f"{arm.name} is asked for twice; pass each model and each decoder once")
            arms.append(arm)
    return arms


def _plan_arm(
    name: str,
    decoder_name: str | None,
    asked: Asked,
    device: torch.device,
    dtype: torch.dtype,
    explain: Callable[[str], None],
) -> Arm:
    directory = hub.resolve(name)
    config = read_config(directory)
    judge, job = choose_judge(config, asked.judge), None
    if judge is not None:
        num_images = asked.num_images or judge.num_images
        wanted = Wanted(
            name=name,
            given=judge.asked(config, num_images),
            grid=None,
            num_images=num_images,
            decoder=decoder_name,
            choose_pruning=asked.choose_pruning,
            sampling=asked.sampling,
            seed=asked.seed,
            batch_size=asked.batch_size,
            optimisation=asked.optimisation,
            quantize=None,
            image_size=judge.side if judge.side != config.order_grid.height * config.pixels_per_token else None,
        )
        job = plan_job(directory, wanted, True, None, device, dtype, explain)
    loaded = job.loaded if job else load(str(directory), device, dtype)
    decoder = job.request.decoder if job else choose_decoder(config, decoder_name)
    return Arm(
        name=f"{Path(name).name}-{decoder.name}",
        model=name,
        weights_sha256=checkpoint.weights_sha256(directory),
        loaded=loaded,
        decoder=decoder,
        judge=judge,
        job=job,
    )
