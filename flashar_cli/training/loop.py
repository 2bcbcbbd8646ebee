"""The training loop: stages of optimizer steps over a set of codes, resumable at any step.

Letters: B batch, N = H*W cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from flashar_cli.data.codes import CodeSet
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.layers import Block
from flashar_cli.recipe import OptimSettings, StageSettings
from flashar_cli.training.interrupt import DeferredInterrupt
from flashar_cli.training.losses import Losses, adaptation_loss, raster_loss
from flashar_cli.training.optim import build_optimizer, set_learning_rate
from flashar_cli.training.randomness import batch_rows, choose_view, condition_drop, corrupt_codes
from flashar_cli.training.stages import Stage
from flashar_cli.training.state import TrainingState
from flashar_cli.training.validation import validation_losses

Report = Callable[[str, dict[str, Any]], None]


@dataclass
class TrainingRun:
    """Everything a run needs. ``report(kind, record)`` gets records of kind ``step`` and ``validation``;
    ``stage_done(name)`` is called after each stage and its validation.
    """

    model: FlasharModel
    train: CodeSet
    validation: CodeSet
    stages: list[Stage]
    optim: OptimSettings
    seed: int
    dtype: torch.dtype
    state: TrainingState
    save_every: int
    validate_every: int
    report: Report
    stage_done: Callable[[str], None]


def run_stages(run: TrainingRun) -> None:
    """Trains all stages in turn, from where ``run.state`` stands. Raises FlasharError on a loss that is not finite."""
    for block in run.model.modules():
        if isinstance(block, Block):
            block.dropout = run.optim.dropout
            if run.optim.compile:
                block.compile(dynamic=False)
    if run.state.load_model(run.model) is None:
        _validate(run, "start", 0)
    first_step = 0
    for index, stage in enumerate(run.stages):
        done = run.state.steps_done(index)
        if done < stage.steps:
            _run_stage(run, index, stage, first_step, done)
            _validate(run, stage.name, first_step + stage.steps)
            with torch.compiler.set_stance("force_eager"):
                run.stage_done(stage.name)
            # Only now is the stage behind us: a run killed before this validates and samples again.
            run.state.save(index, stage.steps, run.model, None)
        first_step += stage.steps
    run.model.requires_grad_(True)
    run.model.eval()


def _run_stage(run: TrainingRun, index: int, stage: Stage, first_step: int, done: int) -> None:
    optimizer = build_optimizer(run.model, stage.settings, run.optim)
    run.state.load_optimizer(index, optimizer)
    started, timed_from = time.monotonic(), done
    with DeferredInterrupt() as interrupt:
        while done < stage.steps:
            rate = set_learning_rate(optimizer, stage.settings, done, stage.steps)
            record = _optimizer_step(run, stage.settings, optimizer, first_step + done)
            done += 1
            speed = (done - timed_from) * run.optim.batch_size / max(time.monotonic() - started, 1e-9)
            position = {"stage": stage.name, "step": first_step + done - 1, "lr": rate, "images_per_s": speed}
            run.report("step", position | record)
            if interrupt.requested:
                run.state.save(index, done, run.model, optimizer)
                raise KeyboardInterrupt
            if done % run.save_every == 0 and done < stage.steps:
                run.state.save(index, done, run.model, optimizer)
                started, timed_from = time.monotonic(), done
            if done % run.validate_every == 0 and done < stage.steps:
                _validate(run, stage.name, first_step + done)
                started, timed_from = time.monotonic(), done


def _optimizer_step(
    run: TrainingRun, stage: StageSettings, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    """One step over the global batch; returns its losses and gradient norm."""
    run.model.train()
    # Dropout is the one user of torch's generator; seeded by the step, a resumed run draws what it would have drawn.
    torch.manual_seed(run.seed * 1_000_003 + step)
    rows, epochs = batch_rows(len(run.train), run.optim.batch_size, run.seed, step)
    micro = min(run.optim.micro_batch_size, run.optim.batch_size)
    sums: dict[str, float] = {}
    for start in range(0, len(rows), micro):
        part = slice(start, start + micro)
        share = len(rows[part]) / len(rows)
        losses = batch_losses(run, stage, rows[part], epochs[part])
        if not bool(torch.isfinite(losses.total)):
            raise FlasharError(
                f"the loss is {losses.total.item()} at step {step} ({', '.join(run.train.ids[rows[part]][:8])}); "
                "expected a finite number; lower the learning rate, or check the weights with `flashar inspect`"
            )
        (losses.total * share).backward()
        for field in fields(losses):
            value = getattr(losses, field.name)
            if value is not None:
                sums[field.name] = sums.get(field.name, 0.0) + share * float(value.detach())
    norm = torch.nn.utils.clip_grad_norm_(
        [p for group in optimizer.param_groups for p in group["params"]], run.optim.grad_clip or float("inf")
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums | {"grad_norm": float(norm)}


def batch_losses(run: TrainingRun, stage: StageSettings, rows: Any, epochs: Any) -> Losses:
    """Losses of some rows of the training set, with dropped conditions and corrupted context."""
    model, optim = run.model, run.optim
    views = choose_view(run.train.num_views, run.seed, epochs, rows)
    codes_BHW, conditions = run.train.take(rows).tensors(model.device, views)
    grid = model.config.order_grid
    order = grid.raster() if model.branch is None else grid.diagonal()
    drop = torch.from_numpy(condition_drop(optim.class_drop, run.seed, epochs, rows)).to(model.device)
    inputs_BHW = _corrupted(run, codes_BHW, rows, epochs)
    codes_BN = order.from_raster(codes_BHW)
    with torch.autocast(model.device.type, run.dtype, enabled=run.dtype != torch.float32):
        prediction = model(order.from_raster(inputs_BHW), conditions, order, drop)
        if model.branch is None:
            return raster_loss(prediction, codes_BN)
        teacher_BNV = None
        if stage.distill_weight:
            teacher_BNV = _teacher_logits(model, codes_BHW, conditions, drop)[:, order.cells]
        return adaptation_loss(prediction, codes_BN, stage, teacher_BNV)


@torch.no_grad()
def _teacher_logits(model: FlasharModel, codes_BHW: Tensor, conditions: Conditions, drop: Tensor) -> Tensor:
    """Raster logits [B, N, V] of the base, which a stage that distills keeps frozen."""
    raster = model.config.order_grid.raster()
    model.eval()
    logits = model(raster.from_raster(codes_BHW), conditions, raster, drop).logits
    model.train()
    return logits


def _corrupted(run: TrainingRun, codes_BHW: Tensor, rows: Any, epochs: Any) -> Tensor:
    if run.optim.corruption == 0:
        return codes_BHW
    flat = codes_BHW.flatten(1).cpu().numpy()
    vocab_size = run.model.config.backbone.vocab_size
    noisy = corrupt_codes(flat, run.optim.corruption, vocab_size, run.seed, epochs, rows)
    return torch.from_numpy(noisy).to(codes_BHW.device).reshape(codes_BHW.shape)


def _validate(run: TrainingRun, stage: str, step: int) -> None:
    with torch.compiler.set_stance("force_eager"):  # compiled for the shapes of training steps alone
        losses = validation_losses(run.model, run.validation, run.optim.micro_batch_size, run.dtype)
    run.report("validation", {"stage": stage, "step": step} | losses)
