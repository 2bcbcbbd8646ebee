"""The VQ tokenizer against published numbers, its config from a state dict, and its errors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flashar_cli.checkpoints.convert import convert
from flashar_cli.config import VQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions
from flashar_cli.tokenizers.pixels import from_uint8, psnr_db, to_uint8
from flashar_cli.tokenizers.upstream import config_from_state
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.parity.fixtures import read_fixture
from tests.parity.upstream_files import upstream_state

SMALL = VQConfig(
    codebook_size=20,
    codebook_dim=4,
    channels=32,
    encoder_multipliers=(1, 2),
    decoder_multipliers=(1, 1),
    num_res_blocks=1,
    latent_channels=16,
)


def small_tokenizer(config: VQConfig = SMALL) -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(config).eval()


def shapes_of(config: VQConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in VQTokenizer(config).state_dict().items()}


@pytest.mark.parametrize("name", ["llamagen_vq16", "llamagen_vq8"])
def test_published_tokenizers_give_the_same_numbers(name: str) -> None:
    fixture = read_fixture(name)
    upstream, expected = fixture.meta["config"], fixture.tensors
    config = config_from_state(fixture.meta["state_dict_shapes"])
    assert config == VQConfig(
        codebook_size=upstream["codebook_size"],
        codebook_dim=upstream["codebook_embed_dim"],
        channels=upstream["ch"],
        encoder_multipliers=upstream["encoder_ch_mult"],
        decoder_multipliers=upstream["decoder_ch_mult"],
        num_res_blocks=upstream["num_res_blocks"],
        latent_channels=upstream["z_channels"],
    )
    with torch.device("meta"):
        tokenizer = VQTokenizer(config).eval()
    tokenizer.load_state_dict(fixture.upstream_state(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.latent(expected["image"]), expected["latent"], rtol=0, atol=1e-4)
        assert torch.equal(tokenizer.encode(expected["image"]), expected["codes"])
        torch.testing.assert_close(tokenizer.decode(expected["random_codes"]), expected["decoded"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        VQConfig(),
        VQConfig(
            codebook_size=7, codebook_dim=3, channels=64, encoder_multipliers=(1, 3, 2), decoder_multipliers=(2, 1, 4),
            num_res_blocks=3, latent_channels=5,
        ),
        VQConfig(channels=32, encoder_multipliers=(2,), decoder_multipliers=(1,), num_res_blocks=1),
    ],
)  # fmt: skip
def test_a_config_is_recovered_from_its_shapes(config: VQConfig) -> None:
    shapes = shapes_of(config)
    assert config_from_state(shapes) == config
    assert config_from_state(shapes | {"quantize.codebook_used": [65536]}) == config


def test_every_mismatch_is_listed_in_one_line(tmp_path: Path) -> None:
    state = small_tokenizer().state_dict()
    del state["encoder.mid.0.conv1.bias"], state["quant_conv.weight"]
    state |= {"decoder.norm_out.weight": torch.zeros(31), "discriminator.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "vq.pt")
    torch.save(upstream_state(vocab_size=20), tmp_path / "model.pt")
    with pytest.raises(FlasharError) as error:
        convert(tmp_path / "model.pt", ConvertOptions(), tmp_path / "vq.pt")
    assert str(error.value) == (
        f"{tmp_path / 'vq.pt'} is not a complete LlamaGen VQ tokenizer: "
        "decoder.norm_out.weight is [31], expected [32]; missing encoder.mid.0.conv1.bias; missing quant_conv.weight; "
        "unexpected discriminator.weight"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize.embedding.weight": None}, "missing quantize.embedding.weight"),
        ({"encoder.conv_in.weight": [32]}, r"encoder.conv_in.weight is \[32\], expected 4 axes"),
        ({"encoder.conv_in.weight": [24, 3, 3, 3]}, "width 24 is not a multiple of 32"),
        ({"decoder.conv_blocks.1.res.0.conv1.weight": [40, 32, 3, 3]}, "width not a multiple of 32"),
        ({"decoder.conv_blocks.1.res.0.conv1.weight": None}, "missing decoder.conv_blocks.1.res.0.conv1.weight"),
        ({"decoder.conv_blocks.2.res.0.conv1.weight": [32, 32, 3, 3]}, "expected as many of both"),
    ],
)
def test_foreign_state_dicts_are_refused(change: dict[str, list[int] | None], message: str) -> None:
    changed = shapes_of(SMALL) | change
    with pytest.raises(FlasharError, match=message):
        config_from_state({name: shape for name, shape in changed.items() if shape is not None})


def test_a_language_model_is_not_a_tokenizer() -> None:
    with pytest.raises(FlasharError, match="found tok_embeddings.weight") as error:
        config_from_state({"tok_embeddings.weight": [100, 8], "layers.0.attention.wqkv.weight": [24, 8]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("height", "width"), [(2, 10), (10, 2), (6, 8)])
def test_images_need_not_be_square(height: int, width: int) -> None:
    tokenizer = small_tokenizer()
    images = torch.rand(2, 3, height, width) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, height // 2, width // 2)
    assert tokens.min() >= 0 and tokens.max() < SMALL.codebook_size
    with torch.no_grad():
        decoded = tokenizer.decode(tokens)
        assert decoded.shape == images.shape
        torch.testing.assert_close(tokenizer(images).reconstruction, decoded, rtol=1e-4, atol=1e-5)


def test_training_gradients_reach_encoder_decoder_and_codebook() -> None:
    tokenizer = small_tokenizer().train()
    output = tokenizer(torch.rand(2, 3, 8, 8) * 2 - 1)
    (output.reconstruction.square().mean() + output.codebook_loss + output.commitment_loss).backward()
    gradients = {name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None}
    assert set(gradients) == set(tokenizer.state_dict())
    used = gradients["quantize.embedding.weight"].abs().sum(dim=1) > 0
    assert set(used.nonzero().flatten().tolist()) == set(output.tokens.unique().tolist())
    assert gradients["encoder.conv_in.weight"].abs().max() > 0


def test_tokens_do_not_depend_on_the_length_of_latents_or_codebook_vectors() -> None:
    tokenizer = small_tokenizer()
    latent = torch.randn(1, SMALL.codebook_dim, 3, 5)
    tokens = tokenizer.quantize.search(latent)
    distances = (
        torch.nn.functional.normalize(latent, dim=1).permute(0, 2, 3, 1).unsqueeze(-2) - tokenizer.quantize.codebook()
    ).square().sum(-1)  # fmt: skip
    assert torch.equal(tokens, distances.argmin(-1))
    tokenizer.quantize.embedding.weight.data *= torch.rand(SMALL.codebook_size, 1) + 0.5
    assert torch.equal(tokenizer.quantize.search(latent * 7), tokens)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 7, 8), "7x8 pixels.*multiples of 2"), ((1, 3, 8, 7), "8x7"), ((1, 3, 0, 8), "0x8"), ((3, 8, 8), "shape")],
)
def test_images_of_a_wrong_size_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FlasharError, match=message):
        small_tokenizer().encode(torch.zeros(shape))


@pytest.mark.parametrize("token", [-1, 20])
def test_tokens_of_another_tokenizer_are_refused(token: int) -> None:
    tokens = torch.zeros(1, 3, 3, dtype=torch.int64)
    tokens[0, 1, 2] = token
    with pytest.raises(FlasharError, match=r"this tokenizer has 0 \.\. 19"):
        small_tokenizer().decode(tokens)
    with pytest.raises(FlasharError, match="expected integers"):
        small_tokenizer().decode(tokens.float())


def test_pixels_survive_the_round_trip() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (2, 5, 3, 3), dtype=np.uint8)
    stored[0, 0, 0], stored[0, 0, 1] = 0, 255
    images = from_uint8(stored)
    assert images.shape == (2, 3, 5, 3) and images.min() == -1 and images.max() == 1
    assert np.array_equal(to_uint8(images), stored)
    assert to_uint8(torch.full((1, 3, 1, 1), 1.7)).max() == 255
    assert psnr_db(images, images) == float("inf")
    assert psnr_db(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)) == pytest.approx(20 * np.log10(2))
    with pytest.raises(FlasharError, match="expected uint8"):
        from_uint8(images[0])
