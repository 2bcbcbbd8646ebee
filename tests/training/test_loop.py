"""The training loop on a small model: what moves, what stays, and that a resumed run is the same run."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from flashar_cli.config import BranchConfig, default_gate_dim
from flashar_cli.data.codes import CodeSet
from flashar_cli.errors import FlasharError
from flashar_cli.nn.layers import Attention
from flashar_cli.recipe import EngineSettings, OptimSettings, StageSettings
from flashar_cli.training import loop
from flashar_cli.training.loop import TrainingRun, run_stages
from flashar_cli.training.losses import losses_of
from flashar_cli.training.parallel import Parallel
from flashar_cli.training.randomness import batch_rows, condition_drop, corrupt_codes, token_drop
from flashar_cli.training.signals import Terminated
from flashar_cli.training.stages import Stage
from flashar_cli.training.state import TrainingState
from flashar_cli.training.validation import validation_losses
from tests.tiny_models import build_model, random_config


def drawn_set(count: int = 24, height: int = 3, width: int = 4) -> CodeSet:
    """Codes with something to learn: each is its left neighbour plus one, modulo 32."""
    rng = np.random.default_rng(0)
    codes = (rng.integers(0, 32, (count, 1, 1)) + np.arange(height)[:, None] + np.arange(width)) % 32
    return CodeSet(codes.astype(np.int32), np.array([f"p{k:03d}" for k in range(count)]), rng.integers(0, 10, count))


def make_run(
    folder, stages, branch=True, seed=0, save_every=100, engine=None, asynchronous=False, **optim
) -> TrainingRun:
    model = build_model(random_config(3, 4, branch=False, tokenizer=False))
    if branch:
        model.add_branch(BranchConfig(layer=1, gate="hidden", gate_dim=default_gate_dim("hidden", 32, 32)), seed)
    data = drawn_set()
    return TrainingRun(
        model=model,
        train=data.take(slice(0, 16)),
        validation=data.take(slice(16, 24)),
        stages=stages,
        optim=OptimSettings(**{"batch_size": 6, "corruption": 0.1, "dropout": 0.1, **optim}),
        engine=EngineSettings(**(engine or {})),
        seed=seed,
        dtype=torch.float32,
        state=TrainingState(folder, {"seed": seed}, asynchronous=asynchronous),
        save_every=save_every,
        validate_every=100,
        report=lambda kind, record: None,
        stage_done=lambda name: None,
    )


TWO_STAGES = [
    Stage("stage1", 4, StageSettings(lr=1e-2, backbone_lr_factor=0.0, distill_weight=0.2)),
    Stage("stage2", 4, StageSettings(lr=1e-2, backbone_lr_factor=0.2, gate_entropy_weight=0.01)),
]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_stage_one_moves_branch_and_gate_only(tmp_path):
    run = make_run(tmp_path, TWO_STAGES[:1])
    before = weights(run.model)
    run_stages(run)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("branch.") for name in moved)
    assert any(name.startswith("branch.gate.") for name in moved)


def test_stage_two_moves_everything(tmp_path):
    run = make_run(tmp_path, TWO_STAGES[1:])
    before = weights(run.model)
    run_stages(run)
    same = [name for name, tensor in run.model.state_dict().items() if torch.equal(tensor, before[name])]
    assert not same


def test_it_learns(tmp_path):
    run = make_run(tmp_path, [Stage("stage2", 60, StageSettings(lr=1e-2))], corruption=0.0, dropout=0.0, class_drop=0.0)
    records = []
    run.report = lambda kind, record: records.append(record) if kind == "validation" else None
    run_stages(run)
    assert records[-1]["fused"] < 0.5 * records[0]["fused"]
    assert set(records[-1]) >= {"raster", "fused", "horizontal", "vertical", "gate_mean", "gate_std"}


class Killed(Exception):
    """Stands for a power cut: nothing of the run gets to clean up."""


@pytest.mark.parametrize("asynchronous", (False, True))
@pytest.mark.parametrize("kill_at", (2, 5, 7))
def test_a_killed_run_resumes_bit_for_bit(tmp_path, kill_at, asynchronous):
    whole = make_run(tmp_path / "whole", TWO_STAGES, ema_decay=0.9)
    run_stages(whole)

    def die(kind, record):
        if kind == "step" and record["step"] == kill_at:
            raise Killed

    cut = make_run(tmp_path / "cut", TWO_STAGES, save_every=1, asynchronous=asynchronous, ema_decay=0.9)
    cut.report = die
    with pytest.raises(Killed):
        run_stages(cut)
    resumed = make_run(tmp_path / "cut", TWO_STAGES, save_every=1, ema_decay=0.9)
    assert resumed.state.loaded is not None
    run_stages(resumed)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_state_of_another_run_is_refused(tmp_path):
    run_stages(make_run(tmp_path, TWO_STAGES))
    with pytest.raises(FlasharError, match="seed differ"):
        make_run(tmp_path, TWO_STAGES, seed=1)
    last = TrainingState(tmp_path, {"seed": 0}).last
    (last / "progress.json").write_bytes(b"half a file")
    with pytest.raises(FlasharError, match="cannot be read"):
        make_run(tmp_path, TWO_STAGES)


def test_damaged_weights_of_a_state_are_one_line(tmp_path):
    run_stages(make_run(tmp_path, TWO_STAGES[:1]))
    for part in TrainingState(tmp_path, {"seed": 0}).last.glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(FlasharError, match="cannot be read"):
        run_stages(make_run(tmp_path, TWO_STAGES))


def test_only_the_last_states_are_kept(tmp_path):
    run_stages(make_run(tmp_path, TWO_STAGES, save_every=1))
    assert [path.name for path in sorted((tmp_path / "state").iterdir())] == ["saved-01-00000003", "saved-01-00000004"]


def test_averages_follow_the_weights_and_become_the_model(tmp_path):
    seen = []
    run = make_run(tmp_path, TWO_STAGES[1:], ema_decay=0.5)
    start = weights(run.model)
    run.report = lambda kind, record: seen.append(weights(run.model)) if kind == "step" else None
    run_stages(run)
    expected = start
    for step, now in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_recomputed_activations_give_the_same_gradients(tmp_path):
    runs = [
        make_run(tmp_path / str(flag), TWO_STAGES, engine={"activation_checkpointing": flag}) for flag in (False, True)
    ]
    for run in runs:
        run_stages(run)
    first, second = (run.model.state_dict() for run in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name])


def test_the_teacher_predicts_the_same_cells_in_raster_order_from_clean_codes(tmp_path):
    run = make_run(tmp_path, TWO_STAGES, corruption=0.5, dropout=0.0, class_drop=0.0)
    model, grid, rows, epochs = run.model, run.model.config.order_grid, np.arange(6), np.zeros(6, np.int64)
    with torch.no_grad():
        model.branch.head.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        model.backbone.head.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        parallel = Parallel(model, run.engine, run.dtype)
        losses = loop.batch_losses(run, parallel, TWO_STAGES[0].settings, rows, epochs)
        codes, conditions = run.train.take(rows).tensors(torch.device("cpu"))
        noisy = corrupt_codes(codes.flatten(1).numpy(), 0.5, 32, run.seed, epochs, rows)
        noisy = torch.from_numpy(noisy).reshape(codes.shape)
        teacher, student = (
            order.to_raster(part, trailing=1)
            for order, part in (
                (grid.raster(), model(grid.raster().from_raster(codes), conditions, grid.raster()).logits),
                (grid.diagonal(), model(grid.diagonal().from_raster(noisy), conditions, grid.diagonal()).vertical),
            )
        )
    heat = TWO_STAGES[0].settings.distill_temperature
    wanted, got = (teacher / heat).softmax(-1), (student / heat).log_softmax(-1)
    divergence = heat**2 * (wanted * (wanted.log() - got)).sum(-1)
    counted = [divergence[:, 0, 0], *divergence[:, 1:].flatten(1).unbind(1)]  # the corner and all but row 0
    torch.testing.assert_close(losses.distill, torch.stack(counted).mean())


def test_dropped_tokens_are_not_seen(tmp_path):
    model = make_run(tmp_path, TWO_STAGES).model.eval()
    order = model.config.order_grid.diagonal()
    rows = np.arange(2)
    codes, conditions = drawn_set().take(rows).tensors(torch.device("cpu"))
    blank = torch.from_numpy(token_drop(0.5, 12, 0, np.zeros(2, np.int64), rows)[:, order.cells])
    codes_BN = order.from_raster(codes)
    other = torch.where(blank, (codes_BN + 5) % 32, codes_BN)
    with torch.no_grad():
        first, second = (model(part, conditions, order, None, blank).logits for part in (codes_BN, other))
        assert torch.equal(first, second)
        assert not torch.equal(first, model(codes_BN, conditions, order).logits)


def test_accumulation_equals_one_large_batch(tmp_path):
    runs = [
        make_run(tmp_path / str(micro), TWO_STAGES, engine={"micro_batch_size": micro}, dropout=0.0, batch_size=6)
        for micro in (6, 2)
    ]
    for run in runs:
        run_stages(run)
    losses = [validation_losses(run.model, run.validation, 4)["fused"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = make_run(tmp_path, TWO_STAGES)
    with torch.no_grad():
        run.model.backbone.norm.weight[0] = torch.nan
    with pytest.raises(FlasharError, match=r"loss is not finite at step 0 \(p0.*no state was saved yet"):
        run_stages(run)


def test_batches_cover_every_epoch_once():
    rows = np.concatenate([batch_rows(10, 4, 3, step)[0] for step in range(5)])
    epochs = np.concatenate([batch_rows(10, 4, 3, step)[1] for step in range(5)])
    assert sorted(rows[epochs == 0]) == list(range(10)) and sorted(rows[epochs == 1]) == list(range(10))
    assert not np.array_equal(rows[:10], rows[10:])


def test_training_noise_depends_on_the_sample_not_on_the_batch():
    rows, epochs = np.arange(64), np.zeros(64, np.int64)
    codes = np.zeros((64, 50), np.int64)
    noisy = corrupt_codes(codes, 0.3, 32, 0, epochs, rows)
    assert np.array_equal(noisy[10:20], corrupt_codes(codes[10:20], 0.3, 32, 0, epochs[10:20], rows[10:20]))
    # 3200 codes, 30 % replaced, of which 1 in 32 by the same code: 930 +- 26 differ.
    assert 930 - 6 * 26 < (noisy != codes).sum() < 930 + 6 * 26
    drop = condition_drop(0.5, 0, np.zeros(4000, np.int64), np.arange(4000))
    assert 2000 - 6 * 32 < drop.sum() < 2000 + 6 * 32


def test_metrics_are_json_lines(tmp_path):
    from flashar_cli.training.metrics import MetricsFile

    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics("step", {"step": 0, "total": 1.0})
    metrics("validation", {"step": 1, "raster": 2.0})
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert kinds == ["step", "validation"]
    metrics("step", {"step": 1, "total": 0.5})
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"kind": "st')
    resumed = MetricsFile(tmp_path / "m.jsonl", resume_at=1)
    assert resumed.validations == [{"step": 1, "raster": 2.0}]
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1]
    MetricsFile(tmp_path / "m.jsonl")
    assert (tmp_path / "m.jsonl").read_text() == ""


@pytest.mark.parametrize(("number", "raised"), ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)))
@pytest.mark.parametrize("at", (2, 3))  # 3 is the last step of its stage
def test_signals_wait_for_the_end_of_the_step(tmp_path, number, raised, at):
    run = make_run(tmp_path, TWO_STAGES)
    reached = []

    def interrupt(kind, record):
        if kind == "step":
            reached.append(record["step"])
            if record["step"] == at:
                signal.raise_signal(number)

    run.report = interrupt
    with pytest.raises(raised):
        run_stages(run)
    assert reached == list(range(at + 1))
    assert TrainingState(tmp_path, {"seed": 0}).total_steps(TWO_STAGES) == at + 1
    validated = []
    resumed = make_run(tmp_path, TWO_STAGES)
    resumed.report = lambda kind, record: validated.append(record["step"]) if kind == "validation" else None
    run_stages(resumed)
    assert validated == [4, 8]


def test_distillation_needs_a_frozen_backbone():
    with pytest.raises(ValueError, match="frozen backbone"):
        StageSettings(distill_weight=0.2, backbone_lr_factor=0.1)


@pytest.mark.parametrize("fails", (False, True))
def test_what_is_evaluated_is_neither_flex_attention_nor_compiled(tmp_path, monkeypatch, fails):
    """FlexAttention that is not compiled stores every score; blocks are compiled for training's shapes alone."""
    run = make_run(
        tmp_path, TWO_STAGES[1:], engine={"attention": "flex"}, dropout=0.0
    )  # no teacher, which evaluates too
    monkeypatch.setattr(loop, "check_backend", lambda *_: None)  # it trains on CUDA only, so the masks stay dense here
    monkeypatch.setattr(run.model, "_teacher_forced_mask", run.model.attention_mask)
    used: dict[str, set[str]] = {"train": set(), "eval": set(), "done": set()}

    def watch(module, given):
        used["train" if module.training else "eval"].add(module.backend)

    for module in run.model.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(watch)

    def done(name):
        used["done"] = {module.backend for module in run.model.modules() if isinstance(module, Attention)}
        used["done"].add(torch._dynamo.eval_frame._stance.stance)
        if fails:
            raise Killed

    run.stage_done = done
    with pytest.raises(Killed) if fails else nullcontext():
        run_stages(run)
    assert used == {"train": {"flex"}, "eval": {"sdpa"}, "done": {"sdpa", "force_eager"}}
    if not fails:
        assert run.model.attention == "sdpa"


def test_compiling_takes_blocks_norms_heads_and_losses(tmp_path, monkeypatch):
    compiled, wanted = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))

    def eager_losses(*arguments):
        wanted.append(arguments[-1])
        return losses_of(*arguments[:-1])

    monkeypatch.setattr(loop, "losses_of", eager_losses)
    run = make_run(tmp_path, TWO_STAGES[1:], engine={"compile": True})
    run_stages(run)
    model = run.model
    blocks = [*model.backbone.blocks, *model.branch.blocks]
    assert {id(m) for m in compiled} == {id(m) for m in (*blocks, model.backbone.norm, model.branch.norm)}
    assert set(wanted) == {True}
