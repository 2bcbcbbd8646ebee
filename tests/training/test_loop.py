"""The training loop on a small model: which weights move, and that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flashar_cli.config import BranchConfig, DiffusionConfig, TextPrefix, default_gate_dim
from flashar_cli.config.recipe import EngineSettings, OptimSettings, Stage, StageSettings
from flashar_cli.data.conditions.by_class import Labels
from flashar_cli.data.conditions.text import Prompts
from flashar_cli.data.tokens import TokenSet
from flashar_cli.errors import FlasharError
from flashar_cli.nn.layers import Attention, Block
from flashar_cli.training import loop
from flashar_cli.training.loop import TrainingRun, batch_losses, run_stages
from flashar_cli.training.losses import losses_of
from flashar_cli.training.parallel import Parallel
from flashar_cli.training.randomness import choose_view, condition_drop, corrupt_tokens, token_drop, unknown_cells
from flashar_cli.training.signals import Terminated
from flashar_cli.training.state import TrainingState
from flashar_cli.training.validation import validation_losses
from tests.tiny_models import build_model, emu_like_config, random_config


def drawn_set(count: int = 24, height: int = 3, width: int = 4) -> TokenSet:
    """Tokens with something to learn: each is its left neighbour plus one, modulo 32."""
    rng = np.random.default_rng(0)
    tokens = (rng.integers(0, 32, (count, 1, 1)) + np.arange(height)[:, None] + np.arange(width)) % 32
    ids, labels = np.array([f"p{k:03d}" for k in range(count)]), Labels(rng.integers(0, 10, count))
    return TokenSet(tokens.astype(np.int32), ids, labels)


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
    """Simulates a power cut: the run can't clean up."""


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
    run = make_run(tmp_path, TWO_STAGES, ema_decay=0.5)
    start = weights(run.model)
    run.report = lambda kind, record: seen.append(weights(run.model)) if kind == "step" else None
    run_stages(run)
    expected = start
    for step, now in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_a_batch_by_hand(tmp_path):
    """Views, dropped conditions, replaced context tokens and blanked tokens as their hashes say; targets and teacher
    whole.
    """
    noise = {"class_drop": 0.5, "corruption": 0.3, "token_drop": 0.2, "dropout": 0.0}
    run = make_run(tmp_path, TWO_STAGES, **noise)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    stage, rows, epochs = TWO_STAGES[0].settings, np.array([7, 0, 3, 12, 9, 1]), np.array([0, 0, 1, 1, 2, 2])
    run.train = TokenSet(
        np.concatenate([run.train.tokens, run.train.tokens[::-1]], 1), run.train.ids, run.train.subjects
    )
    losses = batch_losses(run, Parallel(run.model, run.engine, run.dtype), stage, rows, epochs)
    views = choose_view(2, run.seed, epochs, rows)
    assert len(set(views.tolist())) == 2
    tokens_BHW, conditions = run.train.take(rows).tensors(run.model.device, views)
    flat = tokens_BHW.flatten(1).numpy()
    noisy = torch.from_numpy(corrupt_tokens(flat, 0.3, 32, run.seed, epochs, rows)).reshape(tokens_BHW.shape)
    drop = torch.from_numpy(condition_drop(0.5, run.seed, epochs, rows))
    blank = torch.from_numpy(token_drop(0.2, 12, run.seed, epochs, rows)).reshape(tokens_BHW.shape)
    assert drop.any() and not drop.all() and blank.any() and not torch.equal(noisy, tokens_BHW)
    order, raster = run.model.config.order_grid.diagonal(), run.model.config.order_grid.raster()
    tokens, below = order.from_raster(tokens_BHW), torch.tensor([cell >= 4 or cell == 0 for cell in order.cells])
    with torch.no_grad():
        prediction = run.model(order.from_raster(noisy), conditions, order, drop, order.from_raster(blank))
        teacher = (
            run.model(raster.from_raster(tokens_BHW), conditions, raster, drop).logits[:, order.cells][:, below] / 2
        )
    student = prediction.vertical[:, below]
    fused, vertical = (-p.log_softmax(-1) for p in (prediction.logits, student))
    expected = {
        "fused": fused.gather(-1, tokens[..., None]).mean(),
        "vertical": vertical.gather(-1, tokens[:, below, None]).mean(),
        "distill": 4 * (teacher.softmax(-1) * (teacher.log_softmax(-1) - (student / 2).log_softmax(-1))).sum(-1).mean(),
    }
    expected["total"] = expected["fused"] + 0.05 * expected["vertical"] + 0.2 * expected["distill"]
    for name, value in expected.items():
        torch.testing.assert_close(getattr(losses, name).detach(), value, msg=name)


def test_a_batch_of_a_base_by_hand(tmp_path):
    run = make_run(tmp_path, TWO_STAGES, branch=False, class_drop=0.5, corruption=0.3, dropout=0.0)
    rows, epochs = np.array([7, 0, 3, 12]), np.array([0, 0, 1, 1])
    losses = batch_losses(run, Parallel(run.model, run.engine, run.dtype), TWO_STAGES[1].settings, rows, epochs)
    tokens, conditions = run.train.take(rows).tensors(run.model.device)
    noisy = torch.from_numpy(corrupt_tokens(tokens.flatten(1).numpy(), 0.3, 32, run.seed, epochs, rows))
    drop, raster = torch.from_numpy(condition_drop(0.5, run.seed, epochs, rows)), run.model.config.order_grid.raster()
    logits = run.model(noisy, conditions, raster, drop).logits
    torch.testing.assert_close(losses.total, torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))


def test_a_batch_of_block_diffusion_by_hand(tmp_path):
    """Unknown cells and the first of each block are targets, as they were before they were replaced."""
    run = make_run(tmp_path, TWO_STAGES, branch=False, class_drop=0.5, corruption=0.3, dropout=0.0)
    run.model.add_diffusion(DiffusionConfig(block=4))
    rows, epochs = np.array([7, 0, 3, 12]), np.array([0, 0, 1, 1])
    losses = batch_losses(run, Parallel(run.model, run.engine, run.dtype), TWO_STAGES[1].settings, rows, epochs)
    tokens, conditions = run.train.take(rows).tensors(run.model.device)
    tokens = tokens.flatten(1)
    noisy = torch.from_numpy(corrupt_tokens(tokens.numpy(), 0.3, 32, run.seed, epochs, rows))
    drop, raster = torch.from_numpy(condition_drop(0.5, run.seed, epochs, rows)), run.model.config.order_grid.raster()
    unknown = torch.from_numpy(unknown_cells(12, 4, run.seed, epochs, rows))
    logits = run.model(noisy, conditions, raster, drop, unknown_BN=unknown).logits
    counted = unknown | (torch.arange(12) % 4 == 0)
    assert 0 < counted.sum() < counted.numel()
    expected = torch.nn.functional.cross_entropy(logits[counted], tokens[counted])
    torch.testing.assert_close(losses.total, expected)
    assert losses.vertical is None and losses.gate_mean is None


@pytest.mark.parametrize("settings", ({"micro_batch_size": 4}, {"micro_batch_size": 1}), ids=str)
def test_block_diffusion_learns_the_same_however_a_batch_is_divided(tmp_path, settings):
    """Images of a batch differ in how many cells are unknown."""
    found = []
    for name, engine in (("whole", {}), ("parts", settings)):
        run = make_run(
            tmp_path / name, [Stage("stage2", 1, StageSettings(lr=1e-2))], branch=False, engine=engine, dropout=0.0
        )
        run.model.add_diffusion(DiffusionConfig(block=4))
        run.report = lambda kind, record: found.append(record) if kind == "step" else None
        run_stages(run)
    assert found[0]["total"] == pytest.approx(found[1]["total"], rel=1e-5)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-4)


def test_block_diffusion_trains_all_weights_and_learns(tmp_path):
    run = make_run(tmp_path, [Stage("stage2", 60, StageSettings(lr=1e-2))], branch=False, corruption=0.0, dropout=0.0)
    run.model.add_diffusion(DiffusionConfig(block=4))
    before, found = weights(run.model), []
    run.report = lambda kind, record: found.append(record) if kind == "validation" else None
    run_stages(run)
    assert not [name for name, tensor in run.model.state_dict().items() if torch.equal(tensor, before[name])]
    assert found[-1]["diffusion"] < found[0]["diffusion"] - 1


def test_the_first_step_moves_each_weight_by_its_rate(tmp_path):
    """AdamW's first step is the learning rate times the sign of the gradient: here half the peak, in warm-up."""
    stage = Stage("stage2", 1, StageSettings(lr=1e-3, backbone_lr_factor=0.2, warmup_steps=2))
    run = make_run(tmp_path, [stage], weight_decay=0.0)
    with torch.no_grad():
        run.model.branch.gate.mlp.fc2.weight.normal_()  # at zero nothing would reach the layer before it
    before = weights(run.model)
    run_stages(run)
    for name, tensor in run.model.state_dict().items():
        rate = 0.5e-3 if name.startswith("branch.") else 0.1e-3
        assert float((tensor - before[name]).abs().max()) == pytest.approx(rate, rel=1e-2), name


def test_weight_decay_shrinks_what_has_no_gradient(tmp_path):
    """The gate's first layer, as its second starts at zero; not the classes that no image shows, for embeddings have
    no decay.
    """
    stage = Stage("stage2", 1, StageSettings(lr=1e-2))
    run = make_run(tmp_path, [stage], weight_decay=0.5, class_drop=0.0, corruption=0.0, dropout=0.0)
    run.train = TokenSet(run.train.tokens, run.train.ids, Labels(np.full(16, 3)))
    before = weights(run.model)
    run_stages(run)
    after = run.model.state_dict()
    torch.testing.assert_close(
        after["branch.gate.mlp.fc1.weight"], before["branch.gate.mlp.fc1.weight"] * (1 - 1e-2 * 0.5)
    )
    shown = torch.arange(11) == 3
    moved = (after["prefix.embedding.weight"] != before["prefix.embedding.weight"]).any(dim=1)
    assert torch.equal(moved, shown)


@pytest.mark.parametrize("largest", (1e-3, 0.0))
def test_gradients_are_clipped_before_the_step(tmp_path, largest):
    run = make_run(tmp_path, TWO_STAGES, grad_clip=largest)
    norms, reported = [], []
    run.report = lambda kind, record: reported.append(record["grad_norm"]) if kind == "step" else None

    def measure(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5)

    hook = register_optimizer_step_pre_hook(measure)
    try:
        run_stages(run)
    finally:
        hook.remove()
    assert len(norms) == 8 and min(reported) > 1e-2
    assert norms == pytest.approx([largest] * 8 if largest else reported, rel=1e-2)


def test_dropout_is_set_for_training_and_off_for_validation(tmp_path):
    losses = {}
    for dropout in (0.0, 0.5):
        run = make_run(tmp_path / str(dropout), TWO_STAGES[1:], dropout=dropout)
        records = losses[dropout] = []
        run.report = lambda kind, record, records=records: records.append(record)
        run_stages(run)
        assert [module.dropout for module in run.model.modules() if isinstance(module, Block)] == [dropout] * 3
    plain, dropped = (records[:2] for records in losses.values())
    assert plain[0] == dropped[0] and plain[0]["stage"] == "start"
    assert plain[1]["total"] != dropped[1]["total"]


def test_every_step_drops_other_values(tmp_path):
    seeds = []
    for seed in (0, 1):
        run = make_run(tmp_path / str(seed), TWO_STAGES, seed=seed)
        run.report = lambda kind, record: seeds.append(torch.initial_seed()) if kind == "step" else None
        run_stages(run)
    assert len(seeds) == len(set(seeds)) == 16


def test_averages_are_what_is_validated_and_kept(tmp_path):
    run, validated, done = make_run(tmp_path, TWO_STAGES, ema_decay=0.9), [], []
    run.report = lambda kind, record: validated.append(record) if kind == "validation" else None
    run.stage_done = lambda name: done.append(weights(run.model))
    run_stages(run)
    expected = validation_losses(run.model, run.validation, run.engine.micro_batch_size)
    assert {name: validated[-1][name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(tensor, done[-1][name]) for name, tensor in run.model.state_dict().items())
    assert any(not torch.equal(tensor, done[0][name]) for name, tensor in done[1].items())


def test_rates_follow_the_steps_of_each_stage(tmp_path):
    run, rates = make_run(tmp_path, TWO_STAGES), []
    run.report = lambda kind, record: rates.append(record["lr"]) if kind == "step" else None
    run_stages(run)
    # A cosine of four steps from 0.01, twice: 1 + cos of 0, 45, 90 and 135 degrees.
    assert rates == pytest.approx([0.01, 0.00853553, 0.005, 0.00146447] * 2, rel=1e-5)


def test_recomputed_activations_give_the_same_gradients(tmp_path):
    runs = [
        make_run(tmp_path / str(flag), TWO_STAGES, engine={"activation_checkpointing": flag}) for flag in (False, True)
    ]
    for run in runs:
        run_stages(run)
    first, second = (run.model.state_dict() for run in runs)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name])


def test_the_teacher_predicts_the_same_cells_in_raster_order_from_clean_tokens(tmp_path):
    run = make_run(tmp_path, TWO_STAGES, corruption=0.5, dropout=0.0, class_drop=0.0)
    model, grid, rows, epochs = run.model, run.model.config.order_grid, np.arange(6), np.zeros(6, np.int64)
    with torch.no_grad():
        model.branch.head.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        model.backbone.head.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        parallel = Parallel(model, run.engine, run.dtype)
        losses = loop.batch_losses(run, parallel, TWO_STAGES[0].settings, rows, epochs)
        tokens, conditions = run.train.take(rows).tensors(torch.device("cpu"))
        noisy = corrupt_tokens(tokens.flatten(1).numpy(), 0.5, 32, run.seed, epochs, rows)
        noisy = torch.from_numpy(noisy).reshape(tokens.shape)
        teacher, student = (
            order.to_raster(part, trailing=1)
            for order, part in (
                (grid.raster(), model(grid.raster().from_raster(tokens), conditions, grid.raster()).logits),
                (grid.diagonal(), model(grid.diagonal().from_raster(noisy), conditions, grid.diagonal()).vertical),
            )
        )
    heat = TWO_STAGES[0].settings.distill_temperature
    wanted, got = (teacher / heat).softmax(-1), (student / heat).log_softmax(-1)
    divergence = heat**2 * (wanted * (wanted.log() - got)).sum(-1)
    counted = [divergence[:, 0, 0], *divergence[:, 1:].flatten(1).unbind(1)]  # the corner and all but row 0
    torch.testing.assert_close(losses.distill, torch.stack(counted).mean())


def test_the_teacher_of_a_model_with_line_ends_predicts_the_same_cells():
    """Cells at the beginning of a row are predicted from the end of the line before."""
    model = build_model(emu_like_config())
    tokens, conditions = torch.randint(32, (2, 3, 5)), model.prefix.example(2, seed=0)
    order, raster = model.config.order_grid.diagonal(), model.config.raster(model.config.order_grid)
    drop = torch.tensor([True, False])
    states = loop._teacher_states(Parallel(model, EngineSettings(), torch.float32), tokens, conditions, drop, order)
    with torch.no_grad():
        expected = model(raster.from_raster(tokens), conditions, raster, drop).logits[:, order.cells]
    torch.testing.assert_close(model.backbone.head(states), expected)


def test_dropped_tokens_are_not_seen(tmp_path):
    model = make_run(tmp_path, TWO_STAGES).model.eval()
    order = model.config.order_grid.diagonal()
    rows = np.arange(2)
    tokens, conditions = drawn_set().take(rows).tensors(torch.device("cpu"))
    blank = torch.from_numpy(token_drop(0.5, 12, 0, np.zeros(2, np.int64), rows)[:, order.cells])
    tokens_BN = order.from_raster(tokens)
    other = torch.where(blank, (tokens_BN + 5) % 32, tokens_BN)
    with torch.no_grad():
        first, second = (model(part, conditions, order, None, blank).logits for part in (tokens_BN, other))
        assert torch.equal(first, second)
        assert not torch.equal(first, model(tokens_BN, conditions, order).logits)


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
    """Uncompiled FlexAttention stores every score, and blocks are compiled for the shapes of training alone."""
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
    for kind in (torch.nn.Module, Block):
        monkeypatch.setattr(kind, "compile", lambda module, **_: compiled.append(module))

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


def test_prompts_of_other_lengths_are_compiled_once(tmp_path, monkeypatch):
    """PyTorch compiles blocks for each length of a sequence anew, and gives up after a few."""
    monkeypatch.setattr(loop, "losses_of", lambda *arguments: losses_of(*arguments[:-1]))
    for kind in (torch.nn.Module, Block):
        monkeypatch.setattr(kind, "compile", lambda module, **_: None)
    prompts = np.empty(24, dtype=object)
    prompts[:] = [list(range(1, 2 + row % 7)) for row in range(24)]
    prefix = TextPrefix(vocab_size=20, max_length=9)
    texts = np.array([f"prompt {row}" for row in range(24)], dtype=object)
    data = TokenSet(drawn_set().tokens, drawn_set().ids, Prompts(texts, prompts, prefix, None))
    learned, lengths = {}, {}
    for compiles in (False, True):
        engine = {"compile": compiles}
        run = make_run(tmp_path / str(compiles), TWO_STAGES[1:], engine=engine, branch=False, batch_size=2, dropout=0.0)
        run.model = build_model(
            random_config(3, 4, branch=False, tokenizer=False).model_copy(update={"prefix": prefix})
        )
        run.train, run.validation = data.take(slice(0, 16)), data.take(slice(16, 24))
        seen = lengths[compiles] = set()

        def note(block, given, seen=seen):
            if block.training:
                seen.add(given[0].shape[1])

        run.model.backbone.blocks[0].register_forward_pre_hook(note)
        run_stages(run)
        learned[compiles] = weights(run.model)
    assert len(lengths[False]) > 1 and lengths[True] == {7 + 3 * 4 - 1}
    torch.testing.assert_close(learned[True], learned[False], rtol=1e-4, atol=1e-5)
