"""Gates against their formulas, written out one target at a time."""

from __future__ import annotations

import math

import pytest
import torch

from flashar_cli.config import BranchConfig, default_gate_dim
from flashar_cli.models.gate import build_gate
from tests.tiny_models import random_config

BACKBONE = random_config().backbone


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    dim, vocab_size = BACKBONE.dim, BACKBONE.vocab_size
    return tuple(2 * torch.randn(2, 3, size, generator=generator) for size in (dim, dim, vocab_size, vocab_size))


def drawn_gate(kind: str) -> torch.nn.Module:
    gate_dim = default_gate_dim(kind, BACKBONE.dim, BACKBONE.vocab_size)
    gate = build_gate(BranchConfig(layer=1, gate=kind, gate_dim=gate_dim), BACKBONE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return gate.requires_grad_(False)


def mlp(gate: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    inner = gate.mlp.fc1.weight @ features
    return gate.mlp.fc2.weight @ (inner / (1 + (-inner).exp())) + gate.mlp.fc2.bias


def test_hidden_gate_reads_horizontal_then_vertical():
    gate, (h, v, *logits) = drawn_gate("hidden"), inputs()
    values = gate(h, v, *logits)
    assert values.shape == (2, 3, 1)
    for b in range(2):
        for c in range(3):
            torch.testing.assert_close(values[b, c], mlp(gate, torch.cat([h[b, c], v[b, c]])))


def test_logits_gate_normalises_both_heads_together():
    gate, (h, v, logits_h, logits_v) = drawn_gate("logits"), inputs()
    logits_h[0, 0, 0], logits_h[0, 1, 1], logits_v[1, 2, 2] = torch.nan, torch.inf, -torch.inf
    values = gate(h, v, logits_h, logits_v)
    for b in range(2):
        for c in range(3):
            both = [*logits_h[b, c].tolist(), *logits_v[b, c].tolist()]
            both = [
                0.0 if math.isnan(value) else max(-30.0, min(30.0, value)) if math.isinf(value) else value
                for value in both
            ]
            mean = sum(both) / len(both)
            rms = math.sqrt(max(sum((value - mean) ** 2 for value in both) / len(both), 1e-6))
            features = torch.tensor([max(-6.0, min(6.0, (value - mean) / rms)) for value in both])
            torch.testing.assert_close(values[b, c], mlp(gate, features))


def test_no_gradient_reaches_the_heads_through_the_logits_gate():
    gate, (h, v, *logits) = drawn_gate("logits").requires_grad_(True), inputs()
    for part in logits:
        part.requires_grad_(True)
    gate(h, v, *logits).sum().backward()
    assert all(part.grad is None for part in logits) and gate.mlp.fc1.weight.grad is not None


@pytest.mark.parametrize(("kind", "value"), (("scalar", 0.7), ("mean", 0.0)))
def test_gates_of_one_value(kind, value):
    gate = drawn_gate(kind)
    if kind == "scalar":
        gate.logit.fill_(value)
    torch.testing.assert_close(gate(*inputs()), torch.full((2, 3, 1), value))


@pytest.mark.parametrize(
    ("gate", "dim", "vocab_size", "width"),
    (
        ("hidden", 32, 16384, 64),
        ("hidden", 512, 16384, 64),
        ("hidden", 768, 32, 96),
        ("hidden", 1280, 16384, 160),
        ("logits", 1280, 32, 32),
        ("logits", 32, 16384, 32),
        ("logits", 32, 282926, 552),
        ("scalar", 1280, 16384, None),
        ("mean", 1280, 16384, None),
    ),
)
def test_default_width_of_a_gate(gate, dim, vocab_size, width):
    assert default_gate_dim(gate, dim, vocab_size) == width
