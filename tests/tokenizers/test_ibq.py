"""The IBQ tokenizer against published numbers, its search, and its published files."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from flashar_cli.config import IBQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers import inference_decoder
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.ibq_upstream import read_state, to_upstream
from tests.parity.fixtures import Fixture, read_fixture

SMALL = IBQConfig(
    codebook_size=20,
    codebook_dim=4,
    channels=32,
    multipliers=(1, 2),
    num_res_blocks=1,
    attention_levels=(0, 1),
    latent_channels=16,
)


def small_tokenizer(config: IBQConfig = SMALL) -> IBQTokenizer:
    torch.manual_seed(0)
    return IBQTokenizer(config).eval()


def published_state(config: IBQConfig = SMALL) -> dict[str, Tensor]:
    return to_upstream(small_tokenizer(config).state_dict())


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return read_fixture("emu35_ibq_small")


@pytest.fixture(scope="module")
def published(fixture: Fixture) -> IBQTokenizer:
    config, state = read_state(fixture.upstream_state())
    with torch.device("meta"):
        tokenizer = IBQTokenizer(config)
    tokenizer.load_state_dict(state, assign=True)
    return tokenizer.eval()


def test_the_config_is_told_by_the_shapes(fixture: Fixture, published: IBQTokenizer) -> None:
    upstream = fixture.meta["config"]
    facts = upstream["ddconfig"]
    sides = [facts["resolution"] // 2**level for level in range(len(facts["ch_mult"]))]
    assert published.config == IBQConfig(
        codebook_size=upstream["n_embed"],
        codebook_dim=upstream["embed_dim"],
        channels=facts["ch"],
        multipliers=facts["ch_mult"],
        num_res_blocks=facts["num_res_blocks"],
        attention_levels=tuple(level for level, side in enumerate(sides) if side in facts["attn_resolutions"]),
        latent_channels=facts["z_channels"],
    )


@torch.inference_mode()
def test_published_numbers(fixture: Fixture, published: IBQTokenizer) -> None:
    expected = fixture.tensors
    torch.testing.assert_close(published.latent(expected["image"]), expected["latent"], rtol=0, atol=1e-4)
    assert torch.equal(published.encode(expected["image"]), expected["codes"])
    torch.testing.assert_close(published.decode(expected["random_codes"]), expected["decoded"], rtol=0, atol=1e-4)
    decoder = inference_decoder(published, torch.float32)
    torch.testing.assert_close(decoder(expected["random_codes"]), expected["decoded"], rtol=0, atol=1e-4)


def test_names_are_upstreams_and_back(fixture: Fixture) -> None:
    state = fixture.upstream_state()
    back = to_upstream(read_state(state)[1])
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        IBQConfig(
            codebook_size=9, codebook_dim=3, channels=32, multipliers=(2, 1, 3), num_res_blocks=2,
            attention_levels=(1,), latent_channels=5,
        ),
        IBQConfig(channels=32, multipliers=(2,), num_res_blocks=1, attention_levels=(), codebook_size=2),
    ],
)  # fmt: skip
def test_other_networks_survive_the_round_trip(config: IBQConfig) -> None:
    tokenizer = small_tokenizer(config)
    found, state = read_state(published_state(config))
    assert found == config
    assert state.keys() == tokenizer.state_dict().keys()
    side = config.downsample
    images = torch.rand(2, 3, side, 3 * side) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 1, 3) and tokens.dtype == torch.int64
    with torch.inference_mode():
        decoded = tokenizer.decode(tokens)
        assert decoded.shape == images.shape
        torch.testing.assert_close(inference_decoder(tokenizer, torch.float32)(tokens), decoded, rtol=0, atol=1e-5)


def test_attention_stands_where_upstream_has_it() -> None:
    names = published_state()
    found = {match[1] for name in names if (match := re.match(r"(.*attn\w*(\.\d+)?)\.norm\.weight", name))}
    assert found == {
        *("encoder.down.0.attn.0", "encoder.down.1.attn.0", "encoder.mid.attn_1"),
        *(f"decoder.up.{level}.attn.{block}" for level in (0, 1) for block in (0, 1)),
        "decoder.mid.attn_1",
    }
    assert "decoder.up.1.upsample.conv.weight" in names and "encoder.down.0.downsample.conv.weight" in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize.embedding.weight": None}, "missing quantize.embedding.weight"),
        ({"encoder.conv_in.weight": (24, 3, 3, 3)}, "width 24 is not a multiple of 32"),
        ({"encoder.down.1.block.0.conv1.weight": (40, 32, 3, 3)}, "width not a multiple of 32"),
        ({"encoder.down.3.block.0.conv1.weight": (32, 32, 3, 3)}, r"3 parts are encoder.down.\*, none encoder.down.2"),
        ({"encoder.down.1.attn.0.q.bias": None}, "missing encoder.down.1.attn.0.q.bias"),
        ({"loss.logvar": (1,), "encoder.mid.0.norm1.weight": (64,)}, "unexpected encoder.mid.0.*; unexpected loss"),
        ({"decoder.up.0.upsample.conv.bias": (32,)}, "unexpected decoder.up.0.upsample.conv.bias"),
        ({"encoder.conv_out.weight": (2**18, 64, 1, 1)}, "latent_channels: expected a whole number"),
    ],
)
def test_foreign_state_dicts_are_refused(change: Mapping[str, tuple[int, ...] | None], message: str) -> None:
    changed = published_state() | {
        name: None if shape is None else torch.empty(shape) for name, shape in change.items()
    }
    with pytest.raises(FlasharError, match=f"not an Emu3.5 tokenizer: .*{message}") as error:
        read_state({name: tensor for name, tensor in changed.items() if tensor is not None})
    assert "\n" not in str(error.value)


def test_long_codebook_vectors_win() -> None:
    """The search is by dot product, unlike a nearest neighbour's: the second vector is nearer, the third longer."""
    tokenizer = small_tokenizer()
    vectors = torch.zeros(SMALL.codebook_size, SMALL.codebook_dim)
    vectors[1:3, 0] = torch.tensor([1.0, 5.0])
    tokenizer.quantize.embedding.weight.data = vectors
    latent = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 4, 1, 1)
    assert tokenizer.quantize.search(latent).item() == 2
    assert torch.equal(tokenizer.quantize.lookup(torch.tensor([[[2]]])), 5 * latent)


def test_the_defaults_are_the_published_network() -> None:
    """It has 455 million weights (Emu3.5, arXiv 2510.26583)."""
    with torch.device("meta"):
        state = IBQTokenizer(IBQConfig()).state_dict()
    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6) == 455
    assert read_state(to_upstream(state))[0] == IBQConfig()
