"""Optimizer groups, learning rates and clipping against figures by hand and against PyTorch's own clipping."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import DiffusionConfig
from flashar_cli.config.recipe import OptimSettings, StageSettings
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.optim import build_optimizer, clip_gradients, set_learning_rate
from tests.tiny_models import CAPTION_PREFIX, build_model, random_config


def two_groups() -> torch.optim.Optimizer:
    """One of the branch, whose factor is 1, one of the backbone."""
    groups = [{"params": [torch.zeros(3)], "lr_factor": factor} for factor in (1.0, 0.2)]
    return torch.optim.SGD(groups, lr=99.0)


def test_warm_up_then_cosine_by_hand():
    """Four steps up to the peak, then 0.1 + 0.9 (1 + cos) / 2 of it, the cosine of 0, 30, ... 150 degrees."""
    stage, optimizer = StageSettings(lr=2.0, warmup_steps=4, final_lr_factor=0.1), two_groups()
    expected = [0.5, 1.0, 1.5, 2.0, 2.0, 1.8794229, 1.55, 1.1, 0.65, 0.3205771]
    for step, rate in enumerate(expected):
        assert set_learning_rate(optimizer, stage, step, 10) == pytest.approx(rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, 0.2 * rate])


def test_a_cosine_of_its_own_length_ends_before_the_stage():
    stage, optimizer = StageSettings(lr=2.0, final_lr_factor=0.25, cosine_steps=2), two_groups()
    rates = [set_learning_rate(optimizer, stage, step, 100) for step in range(5)]
    assert rates == pytest.approx([2.0, 1.25, 0.5, 0.5, 0.5])
    plain = [set_learning_rate(optimizer, StageSettings(lr=2.0), step, 2) for step in range(3)]
    assert plain == pytest.approx([2.0, 1.0, 0.0])


def captioned(branch: bool = True) -> FlasharModel:
    config = random_config(branch=branch, tokenizer=False).model_copy(update={"prefix": CAPTION_PREFIX})
    return build_model(config)


@pytest.mark.parametrize("captions", (False, True))
def test_every_weight_is_in_one_group_with_its_factor_and_decay(captions):
    model = captioned() if captions else build_model(random_config())
    stage = StageSettings(lr=1e-3, backbone_lr_factor=0.2)
    optimizer = build_optimizer(model, stage, OptimSettings(weight_decay=0.05, beta1=0.8, beta2=0.7))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(groups) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in names.items():
        group = groups[id(parameter)]
        assert parameter.requires_grad and group["betas"] == (0.8, 0.7)
        assert group["lr_factor"] == (1.0 if name.startswith("branch.") else 0.2), name
        matrix = parameter.ndim >= 2 and not name.endswith("embedding.weight")
        assert group["weight_decay"] == (0.05 if matrix else 0.0), name


def test_a_factor_of_zero_freezes_prefix_and_backbone():
    model = build_model(random_config())
    optimizer = build_optimizer(model, StageSettings(backbone_lr_factor=0.0), OptimSettings())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in trained) == parameter.requires_grad == name.startswith("branch."), name
    build_optimizer(model, StageSettings(backbone_lr_factor=0.2), OptimSettings())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_block_diffusion_learns_at_the_rates_of_a_branch_and_its_backbone():
    model = build_model(random_config(branch=False, tokenizer=False))
    model.add_diffusion(DiffusionConfig(block=4))
    optimizer = build_optimizer(model, StageSettings(backbone_lr_factor=0.2), OptimSettings(weight_decay=0.05))
    unknown = model.diffusion.unknown
    for group in optimizer.param_groups:
        added = any(parameter is unknown for parameter in group["params"])
        assert group["lr_factor"] == (1.0 if added else 0.2)
        assert not added or (group["weight_decay"] == 0 and len(group["params"]) == 1)
    build_optimizer(model, StageSettings(backbone_lr_factor=0.0), OptimSettings())
    assert unknown.requires_grad and not model.backbone.norm.weight.requires_grad


def test_a_base_alone_learns_at_the_full_rate():
    model = build_model(random_config(branch=False))
    optimizer = build_optimizer(model, StageSettings(backbone_lr_factor=0.2), OptimSettings())
    assert {group["lr_factor"] for group in optimizer.param_groups} == {1.0}


@pytest.mark.parametrize("largest", (0.5, 100.0, 0.0))
def test_all_gradients_are_clipped_together(largest):
    model = build_model(random_config())
    optimizer = build_optimizer(model, StageSettings(), OptimSettings())
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in before]).norm().item()
    assert norm > 100.0
    assert clip_gradients(optimizer, largest) == pytest.approx(norm, rel=1e-5)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        expected = gradient * (largest / norm) if largest else gradient
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-8)


def test_gradients_below_the_bound_stay_as_they_are():
    model = build_model(random_config())
    optimizer = build_optimizer(model, StageSettings(), OptimSettings())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    clip_gradients(optimizer, 1.0)
    assert all((parameter.grad == 1e-6).all() for parameter in model.parameters())
