"""Images to tokens and back: both networks against published numbers, and what is refused."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import BSQConfig, MultiScaleVQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import ScaleTokenizer, build_tokenizer
from tests.tokenizers.next_scale.published import NAMES, Published, assert_near, every_fourth

VQ = MultiScaleVQConfig(codebook_size=20, codebook_dim=4, channels=32, multipliers=(1, 2, 1), num_res_blocks=1)
BSQ = BSQConfig(num_bits=4, channels=32, multipliers=(1, 2), num_res_blocks=1)
BOTH = pytest.mark.parametrize("config", (VQ, BSQ), ids=["vq", "bsq"])


def small_tokenizer(config: MultiScaleVQConfig | BSQConfig) -> ScaleTokenizer:
    torch.manual_seed(0)
    return build_tokenizer(config).eval()


@pytest.fixture(scope="module", params=NAMES)
def published(request) -> Published:
    return Published(request.param)


@torch.inference_mode()
def test_published_images_have_the_published_tokens(published: Published) -> None:
    tokenizer, expected = published.tokenizer, published.encoded
    assert_near(tokenizer.features(published.image), published.features, 1e-4)
    tokens = tokenizer.encode(published.image, expected.scales)
    assert all(torch.equal(*pair) for pair in zip(tokens, expected.tokens, strict=True))
    assert expected.every_fourth is not None
    assert_near(every_fourth(tokenizer.decode(tokens, expected.scales)), expected.every_fourth, 1e-4)


@torch.inference_mode()
def test_published_tokens_become_the_published_images(published: Published) -> None:
    """Tall and wide ones too."""
    for expected in published.decoded:
        assert expected.every_fourth is not None
        images = published.tokenizer.decode(expected.tokens, expected.scales)
        assert_near(every_fourth(images), expected.every_fourth, 1e-4)


@BOTH
@pytest.mark.parametrize("size", [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
@torch.inference_mode()
def test_images_need_not_be_square(config: MultiScaleVQConfig | BSQConfig, size: tuple[int, int]) -> None:
    tokenizer, scales = small_tokenizer(config), [Grid(1, 1), Grid(*size)]
    side = config.downsample
    images = torch.rand(2, 3, side * size[0], side * size[1]) * 2 - 1
    tokens = tokenizer.encode(images, scales)
    assert tokenizer.features(images).shape == (2, 4, *size)
    tokenizer.quantizer.check_tokens(tokens, scales)
    assert tokenizer.decode(tokens, scales).shape == images.shape
    assert tokenizer.decode(tokens[:1], scales).shape == images.shape
    one = tokenizer.decode([each[1:] for each in tokens], scales)
    assert_near(tokenizer.decode(tokens, scales)[1:], one, 1e-4)


@BOTH
@torch.inference_mode()
def test_networks_of_low_precision_and_a_latent_of_float32(config: MultiScaleVQConfig | BSQConfig) -> None:
    tokenizer, scales = small_tokenizer(config), [Grid(1, 2), Grid(3, 5)]
    images = torch.rand(1, 3, 3 * config.downsample, 5 * config.downsample) * 2 - 1
    features = tokenizer.features(images, torch.bfloat16)
    assert features.dtype == torch.float32
    assert 0 < (features - tokenizer.features(images)).abs().max() < 0.05
    expected = tokenizer.quantizer.search(features, scales)
    found = tokenizer.encode(images, scales, torch.bfloat16)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    exact = tokenizer.decode(found, scales)
    tokenizer.bfloat16()
    assert tokenizer.latent(found, scales).dtype == torch.float32
    decoded = tokenizer.decode(found, scales)
    assert decoded.dtype == torch.bfloat16 and 0 < (decoded - exact).abs().mean() < 0.01


@BOTH
@pytest.mark.parametrize(
    ("shape", "scales", "message"),
    (
        ((1, 3, 13, 8), [Grid(3, 2)], "13x8 pixels; this tokenizer needs multiples of"),
        ((1, 3, 0, 8), [Grid(3, 2)], "0x8 pixels"),
        ((3, 8, 8), [Grid(2, 2)], "shape"),
        ((1, 4, 8, 8), [Grid(2, 2)], "shape"),
        ((1, 3, 8, 16), [], "the scales are none; expected .* as the last, the size of the latent"),
        ((1, 3, 8, 16), [Grid(1, 1), Grid(8, 4)], "the scales end with 8x4; expected"),
    ),
)
def test_images_of_another_size_are_refused(
    config: MultiScaleVQConfig | BSQConfig, shape: tuple[int, ...], scales: list[Grid], message: str
) -> None:
    with pytest.raises(FlasharError, match=message) as error:
        small_tokenizer(config).encode(torch.zeros(shape), scales)
    assert "\n" not in str(error.value)


@BOTH
def test_tokens_are_checked_before_they_are_decoded(config: MultiScaleVQConfig | BSQConfig) -> None:
    tokenizer = small_tokenizer(config)
    tokens = [torch.full((1, 2, 2, *tokenizer.quantizer.token_axes), 20)]
    with pytest.raises(FlasharError, match="range over 20 .. 20"):
        tokenizer.decode(tokens, [Grid(2, 2)])
    with pytest.raises(FlasharError, match="tokens of 0 scales"):
        tokenizer.decode([], [Grid(2, 2)])
