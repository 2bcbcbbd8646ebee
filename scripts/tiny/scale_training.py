"""Trains the transformer of a small next-scale model on drawn shapes.

Letters: B images, L tokens of all scales of an image, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.config import NextScaleConfig
from flashar_cli.data.shapes import NUM_CLASSES, TRAINING_SEED
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers import ScaleTokenizer
from scripts.tiny.tokenizer_training import drawn

ENCODED_AT_ONCE = 100


@dataclass(frozen=True)
class ScaleModelTraining:
    """How a next-scale model is trained. The loss is the mean over the tokens of all scales."""

    num_images: int = 16_000
    num_validation: int = 500  # further ones
    steps: int = 1500
    batch_size: int = 32
    lr: float = 3e-3  # peak, AdamW; down to zero by a cosine
    warmup_steps: int = 100
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    class_drop: float = 0.1  # of the labels are left out
    save_every: int = 200
    validate_every: int = 500
    seed: int = 0


@torch.no_grad()
def encode_shapes(tokenizer: ScaleTokenizer, config: NextScaleConfig, count: int, path: Path) -> Tensor:
    """The tokens int64 [count, L] of the first drawn images of ``TRAINING_SEED``, whose classes come in turn; kept in a
    file.
    """
    if path.exists():
        found: Tensor = torch.load(path)
        if len(found) == count:
            return found.long()
    scales, parts = config.scales(config.order_grid), []
    for start in range(0, count, ENCODED_AT_ONCE):
        images = drawn(TRAINING_SEED, start, min(ENCODED_AT_ONCE, count - start), captioned=False)
        maps = tokenizer.encode(images, scales)
        parts.append(torch.cat([each.flatten(1) for each in maps], dim=1).to(torch.int16))
    tokens = torch.cat(parts)
    torch.save(tokens, path)
    return tokens.long()


def train_scale_model(
    model: NextScaleModel,
    tokenizer: ScaleTokenizer,
    tokens: Tensor,
    settings: ScaleModelTraining,
    state: Path,
    log: Callable[[str], None] = lambda line: None,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Trains the model on tokens [N, L], the last ``num_validation`` of them held out; returns the validation losses,
    in nats per token, as they came. What is reached is kept in ``state``, from where a later call goes on. ``compiled``
    blocks go through ``torch.compile``.
    """
    if compiled:
        for block in model.blocks:
            block.forward = torch.compile(block.forward)  # type: ignore[method-assign]
    maps = TokenMaps(model.config, tokenizer.quantizer, model.config.scales(model.config.order_grid))
    train, held_out = tokens[: -settings.num_validation], tokens[-settings.num_validation :]
    labels = torch.arange(len(tokens)) % NUM_CLASSES
    optimizer = torch.optim.AdamW(_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.95), eps=1e-8)
    first, losses = 0, []
    if state.exists():
        saved = torch.load(state)
        assert saved["settings"] == asdict(settings), f"{state} is of other settings; remove it"
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, losses = saved["step"], saved["losses"]
    running = 0.0
    for step, rows in _batches(len(train), settings, first):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        drop = torch.rand(len(rows), generator=generator) < settings.class_drop
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = settings.lr * _schedule(step, settings)
        loss = _loss(model, maps, train[rows], labels[rows], drop)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        running = 0.95 * running + 0.05 * loss.item()
        done = step + 1
        if done % 50 == 0:
            log(f"step {done}/{settings.steps} loss {running:.4f}")
        if done % settings.validate_every == 0 or done == settings.steps:
            losses.append({"step": done, **_validate(model, maps, held_out, labels[len(train) :])})
            log(f"validation {losses[-1]}")
        if done % settings.save_every == 0 or done == settings.steps:
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(content | {"losses": losses, "settings": asdict(settings)}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)
    return losses


def _loss(model: NextScaleModel, maps: TokenMaps, tokens: Tensor, labels: Tensor, drop: Tensor) -> Tensor:
    """Mean cross-entropy of tokens [B, L]."""
    return _losses(model, maps, tokens, labels, drop).mean()


def _losses(model: NextScaleModel, maps: TokenMaps, tokens: Tensor, labels: Tensor, drop: Tensor | None) -> Tensor:
    """[B, L]"""
    with torch.no_grad():
        inputs = maps.inputs(tokens)
    logits_BLV = model(inputs, Conditions(labels=labels), model.config.order_grid, drop)
    return F.cross_entropy(logits_BLV.transpose(1, 2), tokens, reduction="none")


@torch.no_grad()
def _validate(model: NextScaleModel, maps: TokenMaps, tokens: Tensor, labels: Tensor) -> dict[str, Any]:
    """The loss of all tokens, and of each scale."""
    parts = zip(tokens.split(50), labels.split(50), strict=True)
    losses = torch.cat([_losses(model, maps, part, label, None) for part, label in parts])
    sizes = [scale.num_cells for scale in maps.scales]
    by_scale = [round(part.mean().item(), 4) for part in losses.split(sizes, dim=1)]
    return {"loss": round(losses.mean().item(), 5), "by_scale": by_scale}


def _groups(model: NextScaleModel, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay is for matrices."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _batches(count: int, settings: ScaleModelTraining, first: int) -> Iterator[tuple[int, Tensor]]:
    """Steps from ``first`` on, each with its rows: every epoch in an order of its own."""
    each = count // settings.batch_size
    order, epoch = torch.empty(0), -1
    for step in range(first, settings.steps):
        if step // each != epoch:
            epoch = step // each
            order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed + epoch))
        start = step % each * settings.batch_size
        yield step, order[start : start + settings.batch_size]


def _schedule(step: int, settings: ScaleModelTraining) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
