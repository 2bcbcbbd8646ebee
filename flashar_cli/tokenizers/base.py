"""What image tokenizers offer: all of them, and those of one grid of tokens for an image.

Letters: B images, h x w pixels, H x W tokens (h = H * downsample).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flashar_cli.config import ImageTokenizerConfig, TokenizerConfig
from flashar_cli.errors import FlasharError

IMAGE_CHANNELS = 3


class PixelNetwork(nn.Module):
    """What tokenizers of all kinds share. ``config`` says what it is."""

    config: ImageTokenizerConfig

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def check_images(self, images: Tensor) -> None:
        """Raises FlasharError unless these are a batch of images whose sides are multiples of ``downsample``."""
        factor = self.config.downsample
        if images.ndim != 4 or images.shape[1] != IMAGE_CHANNELS:
            raise FlasharError(f"images have shape {tuple(images.shape)}; expected [B, 3, height, width]")
        height, width = images.shape[-2:]
        if height < factor or width < factor or height % factor or width % factor:
            raise FlasharError(
                f"images are {height}x{width} pixels; this tokenizer needs multiples of {factor}; crop or resize them"
            )


class ImageTokenizer(PixelNetwork, ABC):
    """Images to token grids and back."""

    config: TokenizerConfig

    @abstractmethod
    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """float [B, 3, h, w] in [-1, 1] -> tokens int64 [B, H, W] in 0 .. codebook_size-1. The network runs in
        ``dtype``. Raises FlasharError for an image whose sides are not multiples of ``config.downsample``.
        """

    @abstractmethod
    def decode_unchecked(self, tokens: Tensor) -> Tensor:
        """``decode`` without the range check, which waits for the device."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, H, W] -> float [B, 3, h, w], about [-1, 1] and not clamped.

        Raises FlasharError for a token outside 0 .. codebook_size-1.
        """
        self.check_tokens(tokens)
        return self.decode_unchecked(tokens)

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises FlasharError unless these are a batch of token grids in 0 .. codebook_size-1."""
        if tokens.ndim != 3 or tokens.is_floating_point():
            raise FlasharError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}; expected integers [B, height, width]")
        check_range(tokens, self.config.codebook_size)


def check_range(tokens: Tensor, num_values: int) -> None:
    """Raises FlasharError unless all are in 0 .. num_values-1."""
    if tokens.numel() == 0:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= num_values:
        raise FlasharError(
            f"tokens range over {low} .. {high}; this tokenizer has 0 .. {num_values - 1}; "
            "were they made with another tokenizer?"
        )
