"""Infinity's published files of image tokenizers: their config, their names, and files that are none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from flashar_cli.config import BSQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers import build_tokenizer
from flashar_cli.tokenizers.next_scale.infinity_upstream import CONSTANTS, read_state, to_upstream
from tests.parity.fixtures import read_fixture

SMALL = BSQConfig(num_bits=4, channels=32, multipliers=(1, 2), num_res_blocks=1)


def state_of(config: BSQConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return to_upstream(build_tokenizer(config).state_dict())


@pytest.mark.parametrize("name", ("infinity_small", "infinity_patchify_small"))
def test_names_are_upstreams_and_back(name: str) -> None:
    fixture = read_fixture(name)
    upstream, facts = fixture.tokenizer_state(), fixture.meta["vae_config"]
    constants = {name: 2 ** torch.arange(facts["codebook_dim"]) for name in CONSTANTS}
    config, state = read_state(upstream | constants)
    assert config == BSQConfig(
        num_bits=facts["codebook_dim"],
        channels=facts["base_ch"],
        multipliers=facts["ch_mult"],
        num_res_blocks=facts["num_res_blocks"],
    )
    assert config.downsample == facts["patch_size"]
    back = to_upstream(state)
    assert back.keys() == upstream.keys() and all(torch.equal(back[name], upstream[name]) for name in upstream)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        BSQConfig(),
        BSQConfig(num_bits=14, multipliers=(1, 2, 4, 4)),
        BSQConfig(num_bits=1, channels=64, multipliers=(3, 1), num_res_blocks=3),
        BSQConfig(num_bits=3, channels=32, multipliers=(2,)),
    ],
)
def test_a_config_is_recovered_from_its_shapes(config: BSQConfig) -> None:
    found, state = read_state(state_of(config))
    assert found == config
    with torch.device("meta"):
        own = build_tokenizer(config).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {name: each.shape for name, each in own.items()}


@pytest.mark.parametrize(
    ("config", "num_weights"),
    [(BSQConfig(), 110_118_051), (BSQConfig(num_bits=14, multipliers=(1, 2, 4, 4)), 81_624_209)],
)
def test_the_published_networks_are_of_this_size(config: BSQConfig, num_weights: int) -> None:
    """So many parameters upstream's own class has, made as for the models of 2 and of 8 billion parameters (upstream:
    tools/run_infinity.py).
    """
    assert sum(tensor.numel() for tensor in state_of(config).values()) == num_weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.conv_out.conv.weight": None}, "missing encoder.conv_out.conv.weight"),
        ({"encoder.conv_in.conv.weight": (24, 3, 3, 3)}, "width 24 is not a multiple of 32"),
        ({"encoder.conv_in.conv.weight": (32, 3, 1, 3, 3)}, "encoder.conv_in.conv.weight is .*, expected 4 axes"),
        ({"encoder.down.1.block.0.conv1.conv.weight": (40, 32, 3, 3)}, "width not a multiple of 32"),
        ({"decoder.mid.block_2.norm1.norm.bias": None}, "missing decoder.mid.block_2.norm1.norm.bias"),
        ({"encoder.mid.attn_1.q.conv.bias": (64,)}, "unexpected encoder.mid.attn_1.q.conv.bias"),
        ({"encoder.norm_out.bias": (64,)}, "unexpected encoder.norm_out.bias"),
        ({"quantizer.project_in.weight": (4, 8)}, "unexpected quantizer.project_in.weight"),
        ({"encoder.conv_out.conv.weight": (300, 64, 3, 3)}, "num_bits: expected a whole number"),
    ],
)
def test_foreign_state_dicts_are_refused(change: Mapping[str, tuple[int, ...] | None], message: str) -> None:
    changed = state_of(SMALL) | {name: shape and torch.empty(shape) for name, shape in change.items()}
    with pytest.raises(FlasharError, match=f"not an Infinity tokenizer: .*{message}") as error:
        read_state({name: tensor for name, tensor in changed.items() if tensor is not None})
    assert "\n" not in str(error.value)
