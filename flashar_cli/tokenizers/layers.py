"""The convolutional encoder and decoder of image tokenizers (VQGAN, Esser et al., arXiv 2012.09841).

Letters: B images, h x w pixels, H x W tokens (h = H * downsample).
Parameter names are those of FoundationVision/LlamaGen tokenizer/tokenizer_image/vq_model.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.tokenizers.base import IMAGE_CHANNELS

NORM_GROUPS = 32
Resize = Literal["down", "up"] | None


@dataclass(frozen=True)
class Levels:
    """The resolutions of an encoder or a decoder, the image's own first: each has half the rows and columns of the one
    before it.
    """

    channels: int  # base width; ``multipliers`` say how many times as wide each level is
    multipliers: tuple[int, ...]
    num_res_blocks: int  # of a level of the encoder
    attention: Collection[int]  # levels with an attention block after each residual block
    middle_attention: bool = True  # whether there is one between the two blocks of the middle
    joint_qkv: bool = False  # whether one convolution makes an attention block's queries, keys and values

    def width(self, level: int) -> int:
        return self.channels * self.multipliers[level]


class Encoder(nn.Module):
    """float [B, 3, h, w] -> [B, latent_channels, H, W]."""

    def __init__(self, levels: Levels, latent_channels: int) -> None:
        super().__init__()
        channels = levels.channels
        self.conv_in = _conv3(IMAGE_CHANNELS, channels)
        self.conv_blocks = nn.ModuleList()
        last = len(levels.multipliers) - 1
        for level in range(len(levels.multipliers)):
            resize: Resize = "down" if level < last else None
            self.conv_blocks.append(Level(levels, level, channels, levels.num_res_blocks, resize))
            channels = levels.width(level)
        self.mid = _middle(levels)
        self.norm_out = _norm(channels)
        self.conv_out = _conv3(channels, latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv_in(images)
        for level in self.conv_blocks:
            features = level(features)
        for block in self.mid:
            features = block(features)
        return self.conv_out(_swish(self.norm_out(features)))


class Decoder(nn.Module):
    """[B, latent_channels, H, W] -> float [B, 3, h, w]. ``conv_blocks`` begin at the lowest resolution."""

    def __init__(self, levels: Levels, latent_channels: int) -> None:
        super().__init__()
        channels = levels.width(-1)
        self.conv_in = _conv3(latent_channels, channels)
        self.mid = _middle(levels)
        self.conv_blocks = nn.ModuleList()
        # Kept for parity: the decoder has one residual block more per level than the encoder (upstream Decoder).
        num_blocks = levels.num_res_blocks + 1
        for level in reversed(range(len(levels.multipliers))):
            resize: Resize = "up" if level else None
            self.conv_blocks.append(Level(levels, level, channels, num_blocks, resize))
            channels = levels.width(level)
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
    """The blocks of one resolution, then the change to the next one."""

    def __init__(self, levels: Levels, level: int, channels_in: int, num_blocks: int, resize: Resize) -> None:
        super().__init__()
        channels = levels.width(level)
        widths = [channels_in] + [channels] * (num_blocks - 1)
        self.res = nn.ModuleList(ResBlock(width, channels) for width in widths)
        num_attention = num_blocks if level in levels.attention else 0
        self.attn = nn.ModuleList(AttentionBlock(channels, levels.joint_qkv) for _ in range(num_attention))
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

    def __init__(self, channels: int, joint_qkv: bool = False) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.joint_qkv = joint_qkv
        if joint_qkv:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q = nn.Conv2d(channels, channels, 1)
            self.k = nn.Conv2d(channels, channels, 1)
            self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        normed = self.norm(features)
        maps = self.qkv(normed).chunk(3, dim=1) if self.joint_qkv else (self.q(normed), self.k(normed), self.v(normed))
        # [B, F, H, W] -> one head [B, 1, H*W, F]
        query, key, value = (each.flatten(2).transpose(1, 2).unsqueeze(1) for each in maps)
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


def _middle(levels: Levels) -> nn.ModuleList:
    channels = levels.width(-1)
    between = AttentionBlock(channels, levels.joint_qkv) if levels.middle_attention else nn.Identity()
    return nn.ModuleList([ResBlock(channels, channels), between, ResBlock(channels, channels)])


def _conv3(channels_in: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, padding=1)


def _swish(features: Tensor) -> Tensor:
    """Overwrites its argument where no gradient is needed."""
    return F.silu(features, inplace=not torch.is_grad_enabled())


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
