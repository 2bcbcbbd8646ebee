"""Facts of a config by hand."""

from __future__ import annotations

import pytest

from flashar_cli.config import default_gate_dim


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
