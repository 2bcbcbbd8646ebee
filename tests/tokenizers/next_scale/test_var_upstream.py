"""VAR's published file of an image tokenizer: its config, its names, and files that are none."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch

from flashar_cli.config import MultiScaleVQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers import build_tokenizer
from flashar_cli.tokenizers.next_scale.var_upstream import STATISTICS, read_state, to_upstream
from tests.parity.fixtures import read_fixture

SMALL = MultiScaleVQConfig(codebook_size=20, codebook_dim=4, channels=32, multipliers=(1, 2), num_res_blocks=1)


def state_of(config: MultiScaleVQConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return to_upstream(build_tokenizer(config).state_dict())


@pytest.mark.parametrize("name", ("var_small", "var_shared_aln_small"))
def test_names_are_upstreams_and_back(name: str) -> None:
    fixture = read_fixture(name)
    upstream, facts = fixture.tokenizer_state(), fixture.meta["config"]
    config, state = read_state(upstream | {STATISTICS: torch.zeros(10, facts["vocab_size"])})
    assert config == MultiScaleVQConfig(
        codebook_size=facts["vocab_size"],
        codebook_dim=facts["z_channels"],
        channels=facts["vae_ch"],
        num_residuals=facts["share_quant_resi"],
    )
    back = to_upstream(state)
    assert back.pop(STATISTICS).shape[1:] == (facts["vocab_size"],)
    assert back.keys() == upstream.keys() and all(torch.equal(back[name], upstream[name]) for name in upstream)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        MultiScaleVQConfig(),
        MultiScaleVQConfig(
            codebook_size=9, codebook_dim=3, channels=64, multipliers=(2, 1, 3), num_res_blocks=3, num_residuals=7
        ),
        MultiScaleVQConfig(codebook_size=2, codebook_dim=1, channels=32, multipliers=(2,), num_residuals=2),
    ],
)
def test_a_config_is_recovered_from_its_shapes(config: MultiScaleVQConfig) -> None:
    found, state = read_state(state_of(config))
    assert found == config
    with torch.device("meta"):
        own = build_tokenizer(config).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {name: each.shape for name, each in own.items()}


def test_attention_stands_where_upstream_has_it() -> None:
    found = {match[1] for name in state_of(SMALL) if (match := re.match(r"(.*attn\w*(\.\d+)?)\.norm\.weight", name))}
    assert found == {
        *("encoder.down.1.attn.0", "encoder.mid.attn_1"),
        *("decoder.up.1.attn.0", "decoder.up.1.attn.1", "decoder.mid.attn_1"),
    }


def test_the_defaults_are_the_published_network() -> None:
    """So many parameters upstream's own class has, made as for vae_ch160v4096z32.pth (upstream: models/__init__.py)."""
    state = state_of(MultiScaleVQConfig())
    assert sum(tensor.numel() for name, tensor in state.items() if name != STATISTICS) == 108_948_355


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize.embedding.weight": None}, "missing quantize.embedding.weight"),
        ({"quantize.quant_resi.qresi_ls.0.weight": None}, "missing quantize.quant_resi.qresi_ls.0.weight"),
        ({"quantize.quant_resi.qresi_ls.2.bias": None}, "missing quantize.quant_resi.qresi_ls.2.bias"),
        ({"quantize.quant_resi.qresi_ls.5.bias": (4,)}, r"5 parts are quantize.quant_resi.qresi_ls.\*, none .*4"),
        ({"quantize.embedding.weight": (20,)}, r"quantize.embedding.weight is \[20\], expected 2 axes"),
        ({"encoder.conv_in.weight": (24, 3, 3, 3)}, "width 24 is not a multiple of 32"),
        ({"encoder.down.1.attn.0.qkv.bias": None}, "missing encoder.down.1.attn.0.qkv.bias"),
        ({"encoder.down.0.attn.0.qkv.bias": (96,)}, "unexpected encoder.down.0.attn.0.qkv.bias"),
        ({"loss.logvar": (1,), "pos_start": (1, 1, 64)}, "unexpected loss.logvar; unexpected pos_start"),
        ({"quantize.embedding.weight": (1, 4)}, "codebook_size: expected a whole number"),
    ],
)
def test_foreign_state_dicts_are_refused(change: Mapping[str, tuple[int, ...] | None], message: str) -> None:
    changed = state_of(SMALL) | {name: shape and torch.empty(shape) for name, shape in change.items()}
    with pytest.raises(FlasharError, match=f"not a VAR tokenizer: .*{message}") as error:
        read_state({name: tensor for name, tensor in changed.items() if tensor is not None})
    assert "\n" not in str(error.value)
