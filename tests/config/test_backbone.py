"""Counts from a config against the parameters of real modules."""

import pytest
import torch

from flashar_cli.config import GATES, BackboneConfig, BranchConfig, GateKind, default_gate_dim
from flashar_cli.families import PRESETS
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.gate import build_gate
from flashar_cli.models.transformer import Transformer

BACKBONE = BackboneConfig(dim=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=50)


def num_parameters(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # type: ignore[attr-defined]


def test_weights_are_those_of_the_model() -> None:
    model = Transformer(BACKBONE)
    assert BACKBONE.block_weights == num_parameters(model.blocks[0])
    assert BACKBONE.head_weights == num_parameters(model.head) + num_parameters(model.norm)


@pytest.mark.parametrize("gate", ["hidden", "logits", "scalar", "mean"])
def test_gate_weights_are_those_of_the_gate(gate: GateKind) -> None:
    branch = BranchConfig(layer=2, gate=gate, gate_dim=default_gate_dim(gate, 32, 50))
    assert GATES[gate].num_weights(32, 50, branch) == num_parameters(build_gate(branch, BACKBONE))
    apart = branch.model_copy(update={"sees_prefix": False})  # its corner has a gate of its own
    assert GATES[gate].num_weights(32, 50, apart) == num_parameters(build_gate(apart, BACKBONE))


@pytest.mark.parametrize("name", ("llamagen-b", "llamagen-t2i-xl", "nar-b"))
@pytest.mark.parametrize("gate", (None, "hidden", "logits", "scalar"))
def test_model_weights_are_those_of_the_model(name: str, gate: GateKind | None) -> None:
    config = PRESETS[name].config()
    if gate is not None:
        inner = default_gate_dim(gate, config.backbone.dim, config.backbone.vocab_size)
        config = config.model_copy(update={"branch": BranchConfig(layer=5, depth=2, gate=gate, gate_dim=inner)})
    grouped = config.backbone.model_copy(update={"num_kv_heads": 4})
    for each in (config, config.model_copy(update={"backbone": grouped})):
        with torch.device("meta"):
            assert each.num_weights == num_parameters(FlasharModel(each))
