"""An IBQ tokenizer made of a VQ tokenizer has its tokens and images."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import VQConfig
from flashar_cli.tokenizers.vq import VQTokenizer
from scripts.tiny.widening import widened

SIZES = {"codebook_size": 30, "codebook_dim": 4, "channels": 32, "latent_channels": 6}


@torch.inference_mode()
@pytest.mark.parametrize(
    "config",
    (
        VQConfig(**SIZES, encoder_multipliers=(1, 1, 2), decoder_multipliers=(2, 1, 1), num_res_blocks=1),
        VQConfig(**SIZES, encoder_multipliers=(1, 2), decoder_multipliers=(1, 2), num_res_blocks=2),
        VQConfig(**SIZES, encoder_multipliers=(1, 2), decoder_multipliers=(3, 1), num_res_blocks=1),
    ),
)
def test_tokens_and_images_are_the_same(config: VQConfig) -> None:
    torch.manual_seed(0)
    narrow = VQTokenizer(config).eval()
    for parameter in narrow.parameters():
        parameter.normal_(std=0.2)
    wide = widened(narrow)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    tokens = narrow.encode(images)
    assert tokens.unique().numel() > 3
    torch.testing.assert_close(wide.latent(images), narrow.latent(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(wide.encode(images), tokens)
    torch.testing.assert_close(wide.decode(tokens), narrow.decode(tokens), rtol=1e-4, atol=1e-4)
