"""Adapters against plain layers: before training they change nothing, and merged they compute what they did apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from flashar_cli.config.recipe import LoraSettings
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import adapters, add_adapters, enable_adapters, plain_name
from flashar_cli.models.prefix import Conditions
from flashar_cli.training.adapters import initialise_adapters
from flashar_cli.training.randomness import adapter_start
from tests.tiny_models import build_model, random_config

ALL = LoraSettings(rank=3, alpha=6.0)
FEW = LoraSettings(rank=5, alpha=1.0, targets=("wo", "w2"))


def adapted(lora: LoraSettings, trained: bool) -> FlasharModel:
    """A random model with adapters; ``trained``: both their matrices are random."""
    model = build_model(random_config(3, 5))
    add_adapters(model, lora)
    initialise_adapters(model, lora, seed=1)
    if trained:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for adapter in adapters(model).values():
                adapter.b_OR.normal_(std=0.1, generator=generator)
    return model


def logits(model: FlasharModel) -> Tensor:
    order = model.config.order_grid.diagonal()
    tokens = torch.arange(30).view(2, 15) % 32
    with torch.no_grad():
        return model(tokens, Conditions(labels=torch.tensor([1, 2])), order).logits


@pytest.mark.parametrize("lora", (ALL, FEW), ids=("all", "few"))
def test_new_adapters_leave_every_bit_of_the_logits(lora):
    model = adapted(lora, trained=False)
    assert torch.equal(logits(model), logits(build_model(random_config(3, 5))))
    assert len(adapters(model)) == 2 * len(lora.targets)
    assert sum(a.a_RI.numel() + a.b_OR.numel() for a in adapters(model).values()) == lora.num_weights(
        model.config.backbone
    )


@pytest.mark.parametrize("lora", (ALL, FEW), ids=("all", "few"))
def test_merged_weights_compute_what_adapters_do(lora):
    model, plain = adapted(lora, trained=True), build_model(random_config(3, 5))
    before = logits(plain)
    with torch.no_grad():
        for name, adapter in adapters(model).items():
            weight = plain.get_parameter(f"{name}.weight")
            weight.copy_(adapter.added_to(weight))
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-6, rtol=1e-6)
    assert (logits(model) - before).abs().max() > 0.01
    enable_adapters(model, False)
    assert torch.equal(logits(model), before)


def test_only_adapters_and_branch_are_trained():
    model = adapted(ALL, trained=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("branch.") for name in trained)
    assert {plain_name(name) for name in model.state_dict()} >= set(build_model(random_config(3, 5)).state_dict())


def test_adapters_of_a_bfloat16_base_are_float32():
    model = build_model(random_config(3, 5)).bfloat16()
    add_adapters(model, ALL)
    assert {each.dtype for adapter in adapters(model).values() for each in adapter[:2]} == {torch.float32}


def test_they_start_as_the_hash_says():
    """Uniform within 1 / sqrt(I), and another sequence for every layer, seed and row."""
    values = adapter_start(4, 64, 400, seed=3)
    assert values.dtype == np.float32 and np.abs(values).max() <= 0.05 and np.abs(values).max() > 0.0499
    assert abs(values.mean()) < 0.001 and values.var() == pytest.approx(0.05**2 / 3, rel=0.02)
    np.testing.assert_array_equal(adapter_start(4, 2, 9, seed=3)[1], adapter_start(4, 64, 9, seed=3)[1] * 1)
    others = (adapter_start(5, 64, 400, seed=3), adapter_start(4, 64, 400, seed=4), values[::-1])
    assert all((values != other).mean() > 0.99 for other in others)
    model = adapted(ALL, trained=False)
    second = adapters(model)["backbone.blocks.0.attention.wo"].a_RI.detach().numpy()
    np.testing.assert_array_equal(second, adapter_start(1, 3, 64, seed=1))


def test_without_peft_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(FlasharError, match=r"lora.rank needs peft .*pip install flashar\[lora\]"):
        add_adapters(build_model(random_config()), ALL)
