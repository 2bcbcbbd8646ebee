"""Optimizer groups and learning rates."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from flashar_cli.config.recipe import NO_LORA, LoraSettings, OptimSettings, StageSettings
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import enable_adapters, is_adapter


def build_optimizer(
    model: FlasharModel, stage: StageSettings, optim: OptimSettings, lora: LoraSettings = NO_LORA
) -> torch.optim.AdamW:
    """AdamW over the weights that this stage trains; the others get ``requires_grad = False``. Each group has an
    ``lr_factor``, its learning rate / the stage's. With ``lora`` the model has adapters: those train where the backbone
    would, and are off where it is frozen.
    """
    groups = []
    for name, part in model.named_children():
        adds = name in ("branch", "diffusion") or model.config.is_base
        factor = 1.0 if adds else stage.backbone_lr_factor
        part.requires_grad_(factor > 0)
        if lora.rank and not adds:
            factor *= lora.lr_factor
            for tensor, parameter in part.named_parameters():
                parameter.requires_grad_(factor > 0 and is_adapter(tensor))
        if factor > 0:
            groups += _decay_groups(part, factor, optim.weight_decay)
    if lora.rank:
        enable_adapters(model, stage.backbone_lr_factor > 0)
    fused = model.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=stage.lr, betas=(optim.beta1, optim.beta2), fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: StageSettings, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to ``final_lr_factor``; returns the rate of groups whose ``lr_factor`` is 1."""
    if step < stage.warmup_steps:
        factor = (step + 1) / stage.warmup_steps
    else:
        length = (stage.cosine_steps or num_steps) - stage.warmup_steps
        progress = min(1.0, (step - stage.warmup_steps) / max(1, length))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        factor = stage.final_lr_factor + (1 - stage.final_lr_factor) * cosine
    for group in optimizer.param_groups:
        group["lr"] = stage.lr * factor * group["lr_factor"]
    return stage.lr * factor


def clip_gradients(optimizer: torch.optim.Optimizer, largest: float) -> float:
    """Scales all gradients together to a norm of at most ``largest`` (0: only measures); returns their norm before."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest or float("inf"))
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _decay_groups(part: nn.Module, factor: float, weight_decay: float) -> list[dict]:
    embeddings = {id(module.weight) for module in part.modules() if isinstance(module, nn.Embedding)}
    trained = [p for p in part.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for parameters, decay in ((matrices, weight_decay), (others, 0.0))
        if parameters
    ]
