"""Facts that follow from a tokenizer's config, against the network itself; and what is refused."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import (
    BSQConfig,
    IBQConfig,
    MultiScaleVQConfig,
    ScaleTokenizerConfig,
    TokenizerConfig,
    VQConfig,
)
from flashar_cli.tokenizers import build_tokenizer
from tests.tiny_models import TINY_VQ

SIZES = {"codebook_size": 8, "codebook_dim": 4, "channels": 32, "num_res_blocks": 1, "latent_channels": 4}


@pytest.mark.parametrize(
    "config",
    (
        TINY_VQ,
        VQConfig(**SIZES, encoder_multipliers=(1, 1, 2), decoder_multipliers=(2, 1, 1)),
        VQConfig(**SIZES, encoder_multipliers=(1, 3), decoder_multipliers=(1, 1)),
        VQConfig(**SIZES, encoder_multipliers=(1, 5), decoder_multipliers=(1, 1)),
        IBQConfig(**SIZES, multipliers=(1, 1, 2, 2, 4), attention_levels=(4,)),
        IBQConfig(**SIZES, multipliers=(1, 2, 1), attention_levels=()),
        IBQConfig(**SIZES, multipliers=(1, 1, 9), attention_levels=(0,)),
        IBQConfig(**SIZES, multipliers=(3,), attention_levels=(0,)),
    ),
)
def test_the_largest_map_and_the_image_of_a_token(config: TokenizerConfig) -> None:
    side, values = 2 * config.downsample, [0]
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
        for module in tokenizer.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, output: values.append(output.numel()))
        images = torch.zeros(1, 3, side, 2 * side)
        assert tokenizer.latent(images).shape == (1, config.codebook_dim, 2, 4)
        assert tokenizer.decode_unchecked(torch.zeros(1, 2, 4, dtype=torch.int64)).shape == images.shape
    assert config.image_values(2 * side**2) == max(values)


@pytest.mark.parametrize(
    "config",
    (
        MultiScaleVQConfig(codebook_dim=3, channels=32, num_res_blocks=1),
        MultiScaleVQConfig(codebook_dim=3, channels=32, num_res_blocks=1, multipliers=(1, 9, 1)),
        MultiScaleVQConfig(codebook_dim=3, channels=32, num_res_blocks=1, multipliers=(1, 2)),
        MultiScaleVQConfig(codebook_dim=3, channels=32, num_res_blocks=1, multipliers=(3,)),
        BSQConfig(num_bits=3, channels=32, num_res_blocks=1),
        BSQConfig(num_bits=3, channels=32, num_res_blocks=1, multipliers=(1, 5)),
        BSQConfig(num_bits=3, channels=32, num_res_blocks=1, multipliers=(3,)),
    ),
)
def test_the_largest_map_and_the_latent_of_all_scales(config: ScaleTokenizerConfig) -> None:
    side, values = 2 * config.downsample, [0]
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
        for module in tokenizer.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, output: values.append(output.numel()))
        images = torch.zeros(1, 3, side, 2 * side)
        assert tokenizer.encoder(images).shape == (1, config.latent_dim, 2, 4)
        assert tokenizer.images_of(torch.zeros(1, config.latent_dim, 2, 4)).shape == images.shape
    assert config.image_values(2 * side**2) == max(values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    (
        ({"multipliers": ()}, "0 multipliers; expected a whole number from 1 to 8"),
        ({"multipliers": (1,) * 9}, "9 multipliers"),
        ({"multipliers": (1, 0)}, "from 1 to 64"),
        ({"attention_levels": (0, 5)}, r"attention_levels \[0, 5\]; expected levels in 0 \.\. 4"),
        ({"attention_levels": (-1,)}, "from 0 to 7"),
        ({"channels": 48}, "multiple of 32"),
        ({"kind": "vq"}, "kind"),
    ),
)
def test_networks_that_nobody_has_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IBQConfig(**wrong)
