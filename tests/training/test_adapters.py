"""Runs that train adapters: which weights move, against gradients and steps by hand, and resumed ones."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config.recipe import LoraSettings, OptimSettings, StageSettings
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import adapters, add_adapters, is_adapter, plain_name
from flashar_cli.models.prefix import Conditions
from flashar_cli.training.adapters import initialise_adapters
from flashar_cli.training.loop import TrainingRun, run_stages
from flashar_cli.training.optim import build_optimizer, set_learning_rate
from tests.tiny_models import build_model, random_config
from tests.training.test_loop import TWO_STAGES, Killed, make_run

LORA = LoraSettings(rank=2, alpha=8.0, dropout=0.1)


def lora_run(folder, lora: LoraSettings = LORA, **settings) -> TrainingRun:
    run = make_run(folder, TWO_STAGES, **settings)
    add_adapters(run.model, lora)
    initialise_adapters(run.model, lora, run.seed)
    run.lora = lora
    return run


def state_of(model: FlasharModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_base_keeps_its_weights_and_all_else_learns(tmp_path):
    run, moved = lora_run(tmp_path), {}
    before = state_of(run.model)

    def moved_since(name: str) -> None:
        now = run.model.state_dict()
        moved[name] = {key for key, tensor in now.items() if not torch.equal(tensor, before[key])}

    run.stage_done = moved_since
    run_stages(run)
    branch = {name for name in before if name.startswith("branch.")}
    assert moved["stage1"] <= branch and moved["stage1"]
    assert moved["stage2"] == branch | {name for name in before if is_adapter(name)}


@pytest.mark.parametrize("kill_at", (2, 6))
def test_a_killed_run_resumes_bit_for_bit(tmp_path, kill_at):
    whole = lora_run(tmp_path / "whole", ema_decay=0.9)
    run_stages(whole)

    def die(kind, record):
        if kind == "step" and record["step"] == kill_at:
            raise Killed

    cut = lora_run(tmp_path / "cut", save_every=1, ema_decay=0.9)
    cut.report = die
    with pytest.raises(Killed):
        run_stages(cut)
    resumed = lora_run(tmp_path / "cut", save_every=1, ema_decay=0.9)
    assert resumed.state.loaded is not None
    run_stages(resumed)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_a_state_holds_what_was_learned_alone(tmp_path):
    """The table of 32 tokens is 8 KiB, and every block larger; adapters are small."""
    run = lora_run(tmp_path)
    run_stages(run)
    names = set(torch.distributed.checkpoint.FileSystemReader(run.state.last).read_metadata().state_dict_metadata)
    learned = {name for name in run.model.state_dict() if is_adapter(name) or name.startswith("branch.")}
    assert {name.removeprefix("model.") for name in names if name.startswith("model.")} == learned


def test_recomputing_activations_changes_nothing(tmp_path):
    runs = [
        lora_run(tmp_path / str(again), engine={"activation_checkpointing": again}, corruption=0.0, dropout=0.0)
        for again in (False, True)
    ]
    for run in runs:
        run_stages(run)
    torch.testing.assert_close(*(run.model.state_dict() for run in runs), rtol=1e-5, atol=1e-6)


def test_gradients_and_a_step_by_hand():
    """With the gradient G of the merged matrix, that of A is s B^T G and that of B is s G A^T. The first step of AdamW
    moves each weight by its learning rate against the sign of its gradient, after the decay.
    """
    lora = LoraSettings(rank=2, alpha=3.0, lr_factor=5.0)
    config = random_config(3, 5)
    model, plain = build_model(config), build_model(config)
    add_adapters(model, lora)
    initialise_adapters(model, lora, seed=0)
    with torch.no_grad():
        for name, adapter in adapters(model).items():
            adapter.b_OR.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
            weight = plain.get_parameter(f"{name}.weight")
            weight.copy_(weight + 1.5 * adapter.b_OR @ adapter.a_RI)
    stage = StageSettings(lr=1e-3, backbone_lr_factor=0.2)
    optimizer = build_optimizer(model, stage, OptimSettings(weight_decay=0.5), lora)
    groups = {id(p): group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        wanted = 1.0 if name.startswith("branch.") else 1.0 if is_adapter(name) else None
        assert groups.get(id(parameter)) == wanted and parameter.requires_grad == (wanted is not None), plain_name(name)
    for each in (model, plain):
        prediction = each(
            torch.arange(15)[None] % 32, Conditions(labels=torch.tensor([3])), config.order_grid.diagonal()
        )
        prediction.logits.square().sum().backward()
    before = {name: (adapter.a_RI.clone(), adapter.b_OR.clone()) for name, adapter in adapters(model).items()}
    set_learning_rate(optimizer, stage, 0, 10)
    optimizer.step()
    for name, adapter in adapters(model).items():
        gradient, (a_RI, b_OR) = plain.get_parameter(f"{name}.weight").grad, before[name]
        torch.testing.assert_close(adapter.a_RI.grad, 1.5 * b_OR.T @ gradient, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(adapter.b_OR.grad, 1.5 * gradient @ a_RI.T, rtol=1e-3, atol=1e-3)
        for now, was in ((adapter.a_RI, a_RI), (adapter.b_OR, b_OR)):
            rate = 1e-3 * 0.2 * 5.0
            torch.testing.assert_close(now, was * (1 - rate * 0.5) - rate * now.grad.sign(), rtol=1e-4, atol=1e-6)
