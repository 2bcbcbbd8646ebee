"""What every image tokenizer offers.

Letters: B images, h x w pixels, H x W tokens (h = H * downsample).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flashar_cli.config import ImageTokenizerConfig
from flashar_cli.errors import FlasharError

IMAGE_CHANNELS = 3


class ImageTokenizer(nn.Module, ABC):
    """Images to token grids and back. ``config`` says what it is."""

    config: ImageTokenizerConfig

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

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

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises FlasharError unless these are a batch of token grids in 0 .. codebook_size-1."""
        if tokens.ndim != 3 or tokens.is_floating_point():
            raise FlasharError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}; expected integers [B, height, width]")
        if tokens.numel() == 0:
            return
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.codebook_size:
            raise FlasharError(
                f"tokens range over {low} .. {high}; this tokenizer has 0 .. {self.config.codebook_size - 1}; "
                "were they made with another tokenizer?"
            )
