"""The training loop: stages of optimizer steps over token grids, resumable at any step, in one process or several.

Letters: B batch, N = H*W cells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.config.recipe import NO_LORA, EngineSettings, LoraSettings, OptimSettings, Stage, StageSettings
from flashar_cli.data.tokens import TokenSet
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.machine.processes import gather_objects, sum_over_processes
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.targets import Targets
from flashar_cli.nn.attention import check_backend
from flashar_cli.nn.layers import Block
from flashar_cli.training.ema import Ema
from flashar_cli.training.interrupt import DeferredInterrupt
from flashar_cli.training.losses import NOT_COUNTED, SCALARS, Losses, losses_of
from flashar_cli.training.optim import build_optimizer, clip_gradients, set_learning_rate
from flashar_cli.training.parallel import Parallel
from flashar_cli.training.randomness import (
    batch_rows,
    choose_view,
    condition_drop,
    corrupt_tokens,
    is_drawn,
    token_drop,
    unknown_cells,
)
from flashar_cli.training.state import TrainingState
from flashar_cli.training.validation import validation_losses

Report = Callable[[str, dict[str, Any]], None]


@dataclass
class TrainingRun:
    """The inputs of a run. ``report(kind, record)`` gets records of kind ``step`` and ``validation``; all processes
    call ``stage_done(name)`` after each stage and its validation. With ``lora`` the model has adapters.
    """

    model: FlasharModel
    train: TokenSet
    validation: TokenSet
    stages: list[Stage]
    optim: OptimSettings
    seed: int
    dtype: torch.dtype
    state: TrainingState
    save_every: int
    validate_every: int
    report: Report
    stage_done: Callable[[str], None]
    engine: EngineSettings = field(default_factory=EngineSettings)
    lora: LoraSettings = NO_LORA


def run_stages(run: TrainingRun) -> None:
    """Trains the stages that ``run.state`` does not have yet; then the model has the averaged weights where the run
    keeps averages.

    Raises FlasharError for a loss that is not finite; KeyboardInterrupt and Terminated, for which the state is saved.
    """
    check_backend(run.engine.attention, run.model.device, run.model.config.backbone.head_dim)
    run.model.set_attention(run.engine.attention)
    blocks = [module for module in run.model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.dropout = run.optim.dropout
        block.recompute = run.engine.activation_checkpointing
    if run.engine.compile:  # heads are compiled with their losses
        torch.compiler.reset()  # what was compiled for other models counts towards the limit of variants
        run = replace(run, train=run.train.of_one_shape())  # each other shape would be one more
        norms = [run.model.backbone.norm, *([] if run.model.branch is None else [run.model.branch.norm])]
        for module in (*blocks, *norms):
            module.compile(dynamic=False)
    parallel = Parallel(run.model, run.engine, run.dtype)
    if run.optim.batch_size < parallel.world.size:
        raise FlasharError(
            f"a batch of {run.optim.batch_size} images is too small for {parallel.world.size} processes; "
            "raise --batch-size, or start fewer"
        )
    ema = Ema(run.model, run.optim.ema_decay) if run.optim.ema_decay else None
    if not run.state.load_model(run.model, ema):
        _validate(run, ema, "start", 0)
    first_step = 0
    for index, stage in enumerate(run.stages):
        if not run.state.is_behind(index):
            _run_stage(run, parallel, ema, index, first_step)
            _validate(run, ema, stage.name, first_step + stage.steps)
            with _evaluating(run, ema):
                run.stage_done(stage.name)
            # A run that is killed before this save validates and samples again.
            run.state.save(index, stage.steps, run.model, None, ema)
        first_step += stage.steps
    run.state.finish()
    if ema is not None:
        ema.swap()
    run.model.set_attention("sdpa")
    run.model.eval()


def _run_stage(run: TrainingRun, parallel: Parallel, ema: Ema | None, index: int, first_step: int) -> None:
    stage, done = run.stages[index], run.state.steps_done(index)
    optimizer = build_optimizer(run.model, stage.settings, run.optim, run.lora)
    parallel.start_stage()
    run.state.load_optimizer(index, run.model, optimizer)
    started, timed_from = time.monotonic(), done
    with DeferredInterrupt() as interrupt:
        while done < stage.steps:
            rate = set_learning_rate(optimizer, stage.settings, done, stage.steps)
            record = _optimizer_step(run, parallel, stage.settings, optimizer, first_step + done)
            if ema is not None:
                ema.update(first_step + done)
            done += 1
            run.state.poll()
            speed = (done - timed_from) * run.optim.batch_size / max(time.monotonic() - started, 1e-9)
            position = {"stage": stage.name, "step": first_step + done - 1, "lr": rate, "images_per_s": speed}
            run.report("step", position | record)
            if stop := interrupt.of_any_process():
                run.state.save(index, done, run.model, optimizer, ema)
                run.state.finish()
                raise stop
            if done % run.save_every == 0 and done < stage.steps:
                run.state.save(index, done, run.model, optimizer, ema)
                started, timed_from = time.monotonic(), done
            if done % run.validate_every == 0 and done < stage.steps:
                _validate(run, ema, stage.name, first_step + done)
                started, timed_from = time.monotonic(), done


def _optimizer_step(
    run: TrainingRun, parallel: Parallel, stage: StageSettings, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, float]:
    """One step over the global batch, of which each process takes a share; returns its losses and gradient norm."""
    run.model.train()
    # Only dropout uses torch's generator; seeded by the step, it is the same in a resumed run.
    torch.manual_seed((run.seed * 1_000_003 + step) * parallel.world.size + parallel.world.rank)
    rows, epochs = batch_rows(len(run.train), run.optim.batch_size, run.seed, step)
    parts, shares = _micro_batches(len(rows), run.engine.micro_batch_size, parallel), _shares(run, rows, epochs)
    sums = torch.zeros(len(SCALARS), dtype=torch.float64, device=run.model.device)
    totals = []
    for number, part in enumerate(parts):
        with parallel.accumulating() if number < len(parts) - 1 else nullcontext():
            losses = batch_losses(run, parallel, stage, rows[part], epochs[part])
            # Gradients are averaged over processes, so the factor undoes that average.
            (losses.total * (shares[part].sum() * parallel.world.size)).backward()
        values = [getattr(losses, name) for name in SCALARS]
        sums += shares[part].sum() * torch.stack([losses.total.new_zeros(()) if v is None else v for v in values])
        totals.append(losses.total.detach())
    # Read after the last micro-batch, so that the device never waits for this process.
    finite = torch.stack(totals).isfinite().tolist()
    bad = [name for part, fine in zip(parts, finite, strict=True) if not fine for name in run.train.ids[rows[part]]]
    *means, num_bad = sum_over_processes([*sums.tolist(), len(bad)])
    if num_bad:
        _refuse_infinite(run, step, [name for names in gather_objects(bad) for name in names])
    norm = clip_gradients(optimizer, run.optim.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    record = {name: mean for name, mean in zip(SCALARS, means, strict=True) if getattr(losses, name) is not None}
    return record | {"grad_norm": norm}


def _shares(run: TrainingRun, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each image's share of the batch's loss, float64 [B]: in block diffusion images differ in how many cells count. So
    the loss does not depend on how the batch is divided.
    """
    diffusion = run.model.config.diffusion
    if diffusion is None:
        return np.full(len(rows), 1 / len(rows))
    num_cells = run.model.config.order_grid.num_cells
    unknown = unknown_cells(num_cells, diffusion.block, run.seed, epochs, rows)
    counts = is_drawn(unknown, diffusion.block).sum(axis=1)
    return counts / counts.sum()


def _micro_batches(batch_size: int, micro_batch_size: int, parallel: Parallel) -> list[NDArray[np.int64]]:
    """Indices into the global batch for each forward of this process. All processes make as many forwards."""
    size = parallel.world.size
    num_parts = min(batch_size // size, math.ceil(math.ceil(batch_size / size) / micro_batch_size))
    share = np.array_split(np.arange(batch_size), size)[parallel.world.rank]
    return np.array_split(share, num_parts)


def _refuse_infinite(run: TrainingRun, step: int, names: list[str]) -> None:
    last = f"the last good state is {run.state.last}" if run.state.last else "no state was saved yet"
    raise FlasharError(
        f"the loss is not finite at step {step} ({', '.join(names[:8])}); expected a finite number; {last}; "
        "lower the learning rate, or check the weights with `flashar inspect`"
    )


def batch_losses(
    run: TrainingRun, parallel: Parallel, stage: StageSettings, rows: NDArray[np.int64], epochs: NDArray[np.int64]
) -> Losses:
    """Losses of some rows of the training set, with dropped conditions and tokens and corrupted context."""
    model, optim = run.model, run.optim
    views = choose_view(run.train.num_views, run.seed, epochs, rows)
    tokens_BHW, conditions = run.train.take(rows).tensors(model.device, views)
    grid = model.config.order_grid
    order = model.config.raster(grid) if model.branch is None else grid.diagonal()
    drop = torch.from_numpy(condition_drop(optim.class_drop, run.seed, epochs, rows)).to(model.device)
    blank_BN = None
    if optim.token_drop:
        blank = token_drop(optim.token_drop, grid.num_cells, run.seed, epochs, rows)
        blank_BN = torch.from_numpy(blank[:, order.cells]).to(model.device)
    tokens_BN = inputs_BN = order.from_raster(tokens_BHW)
    if optim.corruption:
        flat, vocab_size = tokens_BHW.flatten(1).cpu().numpy(), model.config.backbone.vocab_size
        noisy = corrupt_tokens(flat, optim.corruption, vocab_size, run.seed, epochs, rows)
        inputs_BN = torch.from_numpy(noisy[:, order.cells]).to(model.device)
    with torch.autocast(model.device.type, run.dtype, enabled=run.dtype != torch.float32):
        unknown_BN = teacher_BND = None
        if model.diffusion is not None:
            unknown = unknown_cells(grid.num_cells, model.diffusion.config.block, run.seed, epochs, rows)
            unknown_BN = torch.from_numpy(unknown).to(model.device)
            drawn_BN = torch.from_numpy(is_drawn(unknown, model.diffusion.config.block)).to(model.device)
            tokens_BN = tokens_BN.masked_fill(~drawn_BN, NOT_COUNTED)
        if model.branch is not None and stage.distill_weight:
            teacher_BND = _teacher_states(parallel, tokens_BHW, conditions, drop, order)

        def read(hidden: HiddenStates, targets: Targets) -> Losses:
            return losses_of(model, hidden, targets, tokens_BN, stage, teacher_BND, run.engine.compile)

        losses: Losses = parallel(inputs_BN, conditions, order, drop, blank_BN, read, True, unknown_BN)
        return losses


@torch.no_grad()
def _teacher_states(
    parallel: Parallel, tokens_BHW: Tensor, conditions: Conditions, drop: Tensor, order: Order
) -> Tensor:
    """Normed hidden states [B, N, D] from which the frozen base, in raster order, predicts the cells of ``order``."""
    model = parallel.model
    raster = model.config.raster(model.config.order_grid)
    model.eval()
    states: Tensor = model(raster.from_raster(tokens_BHW), conditions, raster, drop, read=_of_horizontal)
    model.train()
    return states.index_select(1, _cells(order, states.device))


def _of_horizontal(hidden: HiddenStates, targets: Targets) -> Tensor:
    """The states from which the horizontal head predicts each cell: of the token before it, or of the end of a line."""
    return hidden.sources(targets).horizontal


@lru_cache(maxsize=4)
def _cells(order: Order, device: torch.device) -> Tensor:
    return torch.tensor(order.cells, device=device)


def _validate(run: TrainingRun, ema: Ema | None, stage: str, step: int) -> None:
    with _evaluating(run, ema):
        losses = validation_losses(run.model, run.validation, run.engine.micro_batch_size, run.dtype)
    run.report("validation", {"stage": stage, "step": step} | losses)


@contextmanager
def _evaluating(run: TrainingRun, ema: Ema | None) -> Iterator[None]:
    """Averaged weights where there are any, and nothing compiled, as the shapes are not those of training. So there is
    no FlexAttention either, which computes and stores every score where it is not compiled.
    """
    run.model.set_attention("sdpa")
    try:
        with torch.compiler.set_stance("force_eager"), nullcontext() if ema is None else ema.swapped_in():
            yield
    finally:
        run.model.set_attention(run.engine.attention)
