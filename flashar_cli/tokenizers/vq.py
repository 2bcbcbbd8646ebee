"""LlamaGen's image tokenizer: images to token grids and back.

Shapes: B batch, h x w pixels, H x W tokens (h = H * downsample), K codebook size, Z codebook dim, F feature channels.
Parameter names are the upstream ones, so published files load without a key table.
Upstream: FoundationVision/LlamaGen tokenizer/tokenizer_image/vq_model.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import VQConfig
from flashar_cli.tokenizers.base import IMAGE_CHANNELS, ImageTokenizer

NORM_GROUPS = 32
SEARCH_ROWS = 8192  # latents compared with the codebook at a time: bounds the [rows, K] score table


@dataclass(frozen=True)
class VQOutput:
    """What a training forward returns."""

    reconstruction: Tensor  # float [B, 3, h, w], not clamped
    codebook_loss: Tensor  # scalar: moves codebook vectors towards latents
    commitment_loss: Tensor  # scalar: moves latents towards codebook vectors
    tokens: Tensor  # int64 [B, H, W]
    latent: Tensor  # float [B, Z, H, W], unit length along Z


class VQTokenizer(ImageTokenizer):
    """Convolutional encoder, nearest-neighbour quantizer, convolutional decoder."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config: VQConfig = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook_size, config.codebook_dim)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)

    def latent(self, images: Tensor) -> Tensor:
        """float [B, 3, h, w] in [-1, 1] -> float [B, Z, H, W] before normalisation.

        Raises FlasharError for an image whose sides are not multiples of ``config.downsample``.
        """
        self.check_images(images)
        return self.quant_conv(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            latent = self.latent(images)
        return self.quantize.nearest(latent.float())  # the search stays in float32

    def decode_unchecked(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quantize.lookup(tokens)))

    def forward(self, images: Tensor, strength: float | Tensor = 1.0) -> VQOutput:
        """Training forward with straight-through gradients. float [B, 3, h, w] in [-1, 1].

        ``strength`` in 0 .. 1 moves the decoder's input from the latent (0) to its codebook vector (1).
        """
        latent = F.normalize(self.latent(images).float(), dim=1)
        tokens = self.quantize.nearest(latent.detach())
        quantized = self.quantize.lookup(tokens)
        codebook_loss = F.mse_loss(quantized, latent.detach())
        commitment_loss = F.mse_loss(latent, quantized.detach())
        passed = latent + strength * (quantized - latent).detach()
        reconstruction = self.decoder(self.post_quant_conv(passed))
        return VQOutput(reconstruction, codebook_loss, commitment_loss, tokens, latent)


class Quantizer(nn.Module):
    """The nearest codebook vector on the unit sphere; its index is the token."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def codebook(self) -> Tensor:
        """float [K, Z], unit rows. Kept for parity: upstream normalises latent and codebook, both in the search and in
        decoding (VectorQuantizer, codebook_l2_norm).
        """
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, latent: Tensor) -> Tensor:
        """[B, Z, H, W] of any length -> int64 [B, H, W]. Of unit vectors the nearest has the largest dot product."""
        batch, dim, height, width = latent.shape
        rows = F.normalize(latent.permute(0, 2, 3, 1).reshape(-1, dim).float(), dim=-1)
        codebook_t = self.codebook().float().t()
        tokens = [(chunk @ codebook_t).argmax(dim=-1) for chunk in rows.split(SEARCH_ROWS)]
        return torch.cat(tokens).reshape(batch, height, width)

    def lookup(self, tokens: Tensor) -> Tensor:
        """int64 [B, H, W] -> unit vectors [B, Z, H, W]."""
        return F.embedding(tokens, self.codebook()).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """[B, 3, h, w] -> [B, latent_channels, H, W]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        channels = config.channels
        self.conv_in = _conv3(IMAGE_CHANNELS, channels)
        self.conv_blocks = nn.ModuleList()
        last = len(config.encoder_multipliers) - 1
        for level, multiplier in enumerate(config.encoder_multipliers):
            width = config.channels * multiplier
            self.conv_blocks.append(
                Level(channels, width, config.num_res_blocks, level == last, "down" if level < last else None)
            )
            channels = width
        self.mid = _middle(channels)
        self.norm_out = _norm(channels)
        self.conv_out = _conv3(channels, config.latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv_in(images)
        for level in self.conv_blocks:
            features = level(features)
        for block in self.mid:
            features = block(features)
        return self.conv_out(_swish(self.norm_out(features)))


class Decoder(nn.Module):
    """[B, latent_channels, H, W] -> [B, 3, h, w]."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        lowest_first = config.decoder_multipliers[::-1]
        channels = config.channels * lowest_first[0]
        self.conv_in = _conv3(config.latent_channels, channels)
        self.mid = _middle(channels)
        self.conv_blocks = nn.ModuleList()
        last = len(lowest_first) - 1
        for level, multiplier in enumerate(lowest_first):
            width = config.channels * multiplier
            # Kept for parity: the decoder has one residual block more per level than the encoder (upstream Decoder).
            self.conv_blocks.append(
                Level(channels, width, config.num_res_blocks + 1, level == 0, "up" if level < last else None)
            )
            channels = width
        self.norm_out = _norm(channels)
        self.conv_out = _conv3(channels, IMAGE_CHANNELS)

    def forward(self, latent: Tensor) -> Tensor:
        features = self.conv_in(latent)
        for block in self.mid:
            features = block(features)
        for level in self.conv_blocks:
            features = level(features)
        return self.conv_out(_swish(self.norm_out(features)))


class Level(nn.Module):
    """The blocks of one resolution, then the change to the next one. Only at the lowest resolution is there attention
    (upstream: Encoder, Decoder).
    """

    def __init__(
        self, channels_in: int, channels: int, num_blocks: int, attention: bool, resize: Literal["down", "up"] | None
    ) -> None:
        super().__init__()
        widths = [channels_in] + [channels] * (num_blocks - 1)
        self.res = nn.ModuleList(ResBlock(width, channels) for width in widths)
        self.attn = nn.ModuleList(AttentionBlock(channels) for _ in range(num_blocks if attention else 0))
        # A level without a resize has no such parameters, as upstream.
        self.downsample = Downsample(channels) if resize == "down" else None
        self.upsample = Upsample(channels) if resize == "up" else None

    def forward(self, features: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            features = block(features)
            if len(self.attn):
                features = self.attn[index](features)
        if self.downsample is not None:
            return self.downsample(features)
        return features if self.upsample is None else self.upsample(features)


class ResBlock(nn.Module):
    """Twice norm, swish and convolution, beside a skip connection."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = _conv3(channels_in, channels)
        self.norm2 = _norm(channels)
        self.conv2 = _conv3(channels, channels)
        self.nin_shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv1(_swish(self.norm1(features)))
        inner = self.conv2(_swish(self.norm2(inner)))
        skip = features if self.nin_shortcut is None else self.nin_shortcut(features)
        # In place where no gradient is needed, because the largest of these maps don't fit into a CPU's caches.
        in_place = not torch.is_grad_enabled() and inner.dtype == skip.dtype
        return inner.add_(skip) if in_place else skip + inner


class AttentionBlock(nn.Module):
    """One-head attention over all positions, beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        normed = self.norm(features)
        # [B, F, H, W] -> one head [B, 1, H*W, F]
        query, key, value = (proj(normed).flatten(2).transpose(1, 2).unsqueeze(1) for proj in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return features + self.proj_out(mixed.squeeze(1).transpose(1, 2).reshape(features.shape))


class Downsample(nn.Module):
    """Halves both sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        # Kept for parity: pads one zero column at the right and one zero row at the bottom (upstream Downsample).
        return self.conv(F.pad(features, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        # Not F.interpolate: compiled for a CPU (PyTorch 2.13) the gradient of its nearest mode came out as zero.
        doubled = features[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
        return self.conv(doubled.reshape(batch, channels, 2 * height, 2 * width))


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), AttentionBlock(channels), ResBlock(channels, channels)])


def _conv3(channels_in: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, padding=1)


def _swish(features: Tensor) -> Tensor:
    """Overwrites its argument where no gradient is needed."""
    return F.silu(features, inplace=not torch.is_grad_enabled())


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
