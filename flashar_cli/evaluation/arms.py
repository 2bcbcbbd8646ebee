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
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.judges import choose_judge
from flashar_cli.evaluation.judges.base import Judge
from flashar_cli.generation.job import GenerateJob, Wanted, choose_pruned, plan_job


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
class Ready:
    """A model that was loaded. ``job`` makes its samples; None where nobody knows how they should look."""

    loaded: ImageModel
    weights_sha256: str
    job: GenerateJob | None


@dataclass(frozen=True)
class Arm:
    """A model under a decoder. ``name`` tells it from other arms; ``judge`` is None where nobody knows how its samples
    should look. ``load`` reads its weights and is told what to do with the reason why an optimisation is impossible; it
    raises FlasharError. Only the arm that is at work should be in memory.
    """

    name: str
    model: str
    decoder: Decoder
    judge: Judge | None
    load: Callable[[Callable[[str], None]], Ready]


def plan_arms(asked: Asked, device: torch.device, dtype: torch.dtype) -> list[Arm]:
    """The arms of what was asked for. Raises FlasharError for decoders that a model does not have, and for arms of the
    same name.
    """
    arms: list[Arm] = []
    for model in asked.models:
        for decoder in asked.decoders or (None,):
            arm = _plan_arm(model, decoder, asked, device, dtype)
            for other in arms:
                if arm.name == other.name and arm.model != other.model:
                    raise FlasharError(
                        f"{arm.model} and {other.model} would both be called {arm.name}; give their folders other names"
                    )
                if arm.name == other.name:
                    raise FlasharError(f"{arm.name} is asked for twice; pass each model and each decoder once")
            arms.append(arm)
    return arms


def _plan_arm(model: str, decoder_name: str | None, asked: Asked, device: torch.device, dtype: torch.dtype) -> Arm:
    directory = hub.resolve(model)
    config = read_config(directory)
    judge = choose_judge(config, asked.judge)
    decoder = choose_pruned(config, asked.choose_pruning(config), decoder_name)[1]

    def load_arm(explain: Callable[[str], None]) -> Ready:
        if judge is None:
            return Ready(load(str(directory), device, dtype), checkpoint.weights_sha256(directory), None)
        wanted = _wanted(model, config, decoder, judge, asked)
        job = plan_job(directory, wanted, True, None, device, dtype, explain)
        return Ready(job.loaded, job.sources["model_sha256"], job)

    return Arm(f"{Path(model).name}-{decoder.name}", model, decoder, judge, load_arm)


def _wanted(model: str, config: ModelConfig, decoder: Decoder, judge: Judge, asked: Asked) -> Wanted:
    """The samples that a judge takes."""
    num_images = asked.num_images or judge.num_images
    return Wanted(
        name=model,
        given=judge.asked(config, num_images),
        grid=None,
        num_images=num_images,
        decoder=decoder.name,
        choose_pruning=asked.choose_pruning,
        sampling=asked.sampling,
        seed=asked.seed,
        batch_size=asked.batch_size,
        optimisation=asked.optimisation,
        quantize=None,
        image_size=judge.side if judge.side != config.order_grid.height * config.pixels_per_token else None,
    )
