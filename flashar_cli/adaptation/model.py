"""The model that a run trains: the base with what its method adds, adapters where the recipe asks for them, and sharded
where no process shall hold it whole.
"""

from __future__ import annotations

import torch

from flashar_cli.adaptation.job import AdaptJob
from flashar_cli.checkpoints.checkpoint import model_on_meta
from flashar_cli.checkpoints.sharded import read_base
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import add_adapters, plain_name
from flashar_cli.training.adapters import initialise_adapters
from flashar_cli.training.parallel import shard


def prepare_model(job: AdaptJob) -> FlasharModel:
    """The model on the job's device. All processes of the run call it. Raises FlasharError."""
    lora = job.recipe.lora
    if job.sharded:
        return _sharded(job)
    model = job.loaded.model
    if job.config.branch is not None:
        model.add_branch(job.config.branch, job.seed, torch.float32)
    if job.config.diffusion is not None:
        model.add_diffusion(job.config.diffusion, torch.float32)
    if lora.rank:
        add_adapters(model, lora)
        initialise_adapters(model, lora, job.seed)
    return model


def _sharded(job: AdaptJob) -> FlasharModel:
    """Made without data, sharded, and then filled: every process reads its own part of the checkpoint."""
    lora = job.recipe.lora
    model = model_on_meta(job.loaded.config.model_copy(update={"branch": job.config.branch}))
    branch = model.branch
    assert branch is not None
    model.prefix.to(job.frozen_dtype)
    model.backbone.to(job.frozen_dtype)
    if lora.rank:
        add_adapters(model, lora)
    shard(model, job.dtype, job.device.type)
    model.to_empty(device=job.device)
    read_base(model, job.directory)
    backbone = {plain_name(name): tensor for name, tensor in model.backbone.state_dict().items()}
    generator = torch.Generator(job.device).manual_seed(job.seed)
    branch.initialise_from(backbone, model.config.backbone.num_layers, generator)
    if lora.rank:
        initialise_adapters(model, lora, job.seed)
    return model.eval()
