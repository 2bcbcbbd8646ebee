"""The image tokenizers of next-scale models: convolutional networks around a quantizer of all scales.

Letters: B images, Z values of the latent at a position, H x W positions of the latent. ``scales`` are the grids of all
maps of an image on the latent; the last one is the latent's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashar_cli.config import BSQConfig, MultiScaleVQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.base import PixelNetwork
from flashar_cli.tokenizers.layers import Decoder, Encoder, Levels
from flashar_cli.tokenizers.next_scale.binary import MultiScaleBSQ
from flashar_cli.tokenizers.next_scale.quantizer import ScaleQuantizer
from flashar_cli.tokenizers.next_scale.vector import MultiScaleVQ


class ScaleTokenizer(PixelNetwork):
    """Images to one map of tokens for each scale, and back. What the tokens of a scale are, ``quantizer`` says."""

    config: MultiScaleVQConfig | BSQConfig

    def __init__(self, config: MultiScaleVQConfig | BSQConfig, levels: Levels, quantizer: ScaleQuantizer) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(levels, config.latent_dim)
        self.decoder = Decoder(levels, config.latent_dim)
        self.quantizer = quantizer
        self.quant_conv: nn.Module = nn.Identity()
        self.post_quant_conv: nn.Module = nn.Identity()

    @torch.no_grad()
    def encode(self, images: Tensor, scales: Sequence[Grid], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """float [B, 3, h, w] in [-1, 1] -> the tokens of each scale. The networks run in ``dtype``.

        Raises FlasharError for images whose sides are not multiples of ``config.downsample``, and for scales that do
        not end with their latent.
        """
        self.check_images(images)
        height, width = (side // self.config.downsample for side in images.shape[-2:])
        if not scales or (scales[-1].height, scales[-1].width) != (height, width):
            found = f"end with {scales[-1]}" if scales else "are none"
            raise FlasharError(f"the scales {found}; expected {height}x{width} as the last, the size of the latent")
        return self.quantizer.search(self.features(images, dtype), scales)

    @torch.no_grad()
    def features(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """float [B, 3, h, w] in [-1, 1] -> what is encoded in tokens, float32 [B, Z, H, W]. Not checked."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self.quant_conv(self.encoder(images)).float()

    def latent(self, tokens: Sequence[Tensor], scales: Sequence[Grid]) -> Tensor:
        """The tokens of the first one or more of ``scales`` -> their sum, float32 [B, Z, H, W]. Not checked."""
        return self.quantizer.latent(tokens, scales)

    def images_of(self, latent: Tensor) -> Tensor:
        """float [B, Z, H, W] -> [B, 3, h, w] of the weights' dtype, about [-1, 1] and not clamped."""
        return self.decoder(self.post_quant_conv(latent.to(self.decoder.conv_in.weight.dtype)))

    def decode(self, tokens: Sequence[Tensor], scales: Sequence[Grid]) -> Tensor:
        """The tokens of the first one or more of ``scales`` -> ``images_of`` their sum. Raises FlasharError for tokens
        of another shape, type or range, and for none or too many; that waits for the device.
        """
        self.quantizer.check_tokens(tokens, scales)
        return self.images_of(self.latent(tokens, scales))


class MultiScaleVQTokenizer(ScaleTokenizer):
    """VAR's. There is attention at the lowest resolution alone, and a 3x3 convolution on both sides of the latent
    (upstream: FoundationVision/VAR models/vqvae.py, basic_vae.py).
    """

    config: MultiScaleVQConfig

    def __init__(self, config: MultiScaleVQConfig) -> None:
        lowest = len(config.multipliers) - 1
        levels = Levels(config.channels, config.multipliers, config.num_res_blocks, (lowest,), joint_qkv=True)
        super().__init__(config, levels, MultiScaleVQ(config))
        self.quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)


class BSQTokenizer(ScaleTokenizer):
    """Infinity's. There is no attention, and nothing between the networks and the bits (upstream:
    FoundationVision/Infinity infinity/models/bsq_vae/flux_vqgan.py).
    """

    config: BSQConfig

    def __init__(self, config: BSQConfig) -> None:
        levels = Levels(config.channels, config.multipliers, config.num_res_blocks, (), middle_attention=False)
        super().__init__(config, levels, MultiScaleBSQ(config))
