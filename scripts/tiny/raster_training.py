"""Trains a raster base of any kind of prefix, in two stages: a high learning rate, then down to zero."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.config import RasterConfig
from flashar_cli.config.recipe import EngineSettings, OptimSettings, Stage, StageSettings
from flashar_cli.data.prepare import plan_tokens
from flashar_cli.data.tokens import split_validation
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.loop import TrainingRun, run_stages
from flashar_cli.training.metrics import MetricsFile
from flashar_cli.training.state import TrainingState


@dataclass(frozen=True)
class RasterTraining:
    """How a raster base is trained. ``data`` is as --data: shapes[:N], token shards, ..."""

    data: str
    steps: int = 3600  # at a high learning rate, the first half of a cosine
    anneal_steps: int = 1800  # from half of it down to zero
    lr: float = 3e-3
    batch_size: int = 32
    num_validation: int = 512
    seed: int = 0
    bfloat16: bool = True  # autocast


def new_model(config: RasterConfig, seed: int) -> FlasharModel:
    """A model with random weights, as training starts from."""
    model = FlasharModel(config)
    model.initialise(seed)
    return model


def train_base(
    loaded: Loaded,
    settings: RasterTraining,
    out: Path,
    compiled: bool = False,
    extras: Mapping[str, Path] | None = None,
) -> None:
    """Trains ``loaded.model``, or goes on where an earlier call was interrupted, and writes it to ``out`` in half
    precision, with ``extras`` beside it. OUT.run holds metrics and training state.
    """
    config, model, tokenizer = loaded.config, loaded.model, loaded.tokenizer
    directory = out.with_name(out.name + ".run")
    directory.mkdir(parents=True, exist_ok=True)
    data = plan_tokens(loaded, settings.data, None, settings.seed).tokens(lambda count: None)
    train, validation = split_validation(data, settings.num_validation)
    high = StageSettings(lr=settings.lr, warmup_steps=min(100, settings.steps), cosine_steps=2 * settings.steps)
    low = StageSettings(lr=settings.lr / 2, warmup_steps=min(20, settings.anneal_steps))
    stages = [Stage("raster", settings.steps, high), Stage("anneal", settings.anneal_steps, low)]
    state = TrainingState(directory, asdict(settings) | {"tokens": train.fingerprint()})
    metrics = MetricsFile(directory / "metrics.jsonl", state.total_steps(stages), echo=sys.stderr)
    run_stages(
        TrainingRun(
            model=model,
            train=train,
            validation=validation,
            stages=stages,
            optim=OptimSettings(batch_size=settings.batch_size),
            engine=EngineSettings(compile=compiled),
            seed=settings.seed,
            dtype=torch.bfloat16 if settings.bfloat16 else torch.float32,
            state=state,
            save_every=200,
            validate_every=500,
            report=metrics,
            stage_done=lambda name: None,
        )
    )
    recipe = {**asdict(settings), "script": "scripts/tiny/raster_training.py"}
    provenance = config.provenance.model_copy(update={"recipe": recipe, "data_fingerprint": train.fingerprint()})
    raster_loss = round(metrics.validations[-1]["raster"], 5)
    final = config.model_copy(update={"raster_loss": raster_loss, "provenance": provenance})
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    tokenizer_state = None if tokenizer is None else {name: t.half() for name, t in tokenizer.state_dict().items()}
    checkpoint.save(out, final, weights, tokenizer_state, overwrite=True, extras=extras)
