"""Image tokens to images. Only this module decides the precision, how many are decoded at once, and what is compiled.

Letters: B images, H and W tokens, Z values of a latent at a position, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from flashar_cli.config import NextScaleConfig
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.base import TokenModel
from flashar_cli.tokenizers import inference_decoder

# Images decoded at once. On a GPU this bounds memory: one map of 64 images of 256x256 with 128 channels has 1 GiB
# in bfloat16. On a CPU the maps of more than one such image no longer fit into the caches.
MAX_IMAGES, MAX_PIXELS_ON_CPU = 64, 256 * 256


def pixel_dtype(device: torch.device, model_dtype: torch.dtype) -> torch.dtype:
    """bfloat16 on CUDA for a model of 16 bits, else float32: no CPU has shown yet that bfloat16 is faster there."""
    return torch.bfloat16 if device.type == "cuda" and model_dtype.itemsize == 2 else torch.float32


class PixelDecoder:
    """Turns tokens into images. The tokenizer must not be moved, cast or trained while this is in use.

    The number of images decoded together changes an image by rounding at most.
    """

    def __init__(self, tokenizer: Any, model_dtype: torch.dtype = torch.float32) -> None:
        """``model_dtype`` is the dtype of the model that samples the tokens."""
        self.tokenizer = tokenizer
        self.device = tokenizer.device
        self.dtype = pixel_dtype(self.device, model_dtype)

    def __call__(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """Tokens int64 [B, H, W], not checked -> float32 [B, 3, h, w], about [-1, 1] and not clamped. ``grid``: where
        the tokens don't tell it; None: the model's own.
        """
        return self._in_parts(self._decoder, tokens, grid)

    def compiled(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """The same through ``torch.compile``; raises the compiler's errors."""
        return self._in_parts(self._compiled, tokens, grid)

    def num_parts(self, batch: int, grid: Grid) -> int:
        """How many parts of about the same size ``batch`` images are decoded in."""
        pixels = grid.num_cells * self.pixels_per_token**2
        at_once = MAX_IMAGES if self.device.type != "cpu" else max(1, MAX_PIXELS_ON_CPU // pixels)
        return max(1, -(-batch // at_once))

    @property
    def pixels_per_token(self) -> int:
        """Image pixels along each side of a token."""
        factor: int = self.tokenizer.config.downsample
        return factor

    @torch.inference_mode()
    def plain(self, tokens: Tensor, grid: Grid) -> Tensor:
        """The same by the tokenizer's own decoder, in the dtype of its weights."""
        images: Tensor = self.tokenizer.decode_unchecked(tokens)
        return images

    def check(self, tokens: Tensor, grid: Grid | None = None) -> None:
        """Raises FlasharError for what are no tokens of images of this grid. Waits for the device."""
        self.tokenizer.check_tokens(tokens)

    def grid_of(self, tokens: Tensor, grid: Grid | None) -> Grid:
        """The grid of the images."""
        return Grid(*tokens.shape[1:])

    def inputs(self, tokens: Tensor, grid: Grid) -> Tensor:
        """What the tokenizer's decoder reads of tokens."""
        return tokens

    @torch.inference_mode()
    def _in_parts(self, decode: Callable[[Tensor], Tensor], tokens: Tensor, grid: Grid | None) -> Tensor:
        size = self.grid_of(tokens, grid)
        parts = tokens.to(self.device).chunk(self.num_parts(len(tokens), size))
        return torch.cat([decode(self.inputs(part, size)).float() for part in parts])

    @cached_property
    def _decoder(self) -> nn.Module:
        return inference_decoder(self.tokenizer, self.dtype)

    @cached_property
    def _compiled(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self._decoder, fullgraph=True)


def pixel_decoder_of(model: TokenModel, tokenizer: Any) -> PixelDecoder:
    """What turns this model's tokens into images."""
    if isinstance(model.config, NextScaleConfig):
        return ScalePixelDecoder(model.config, tokenizer, model.dtype)
    return PixelDecoder(tokenizer, model.dtype)


class ScalePixelDecoder(PixelDecoder):
    """Turns the tokens of the first one or more scales of an image into the image."""

    def __init__(self, config: NextScaleConfig, tokenizer: Any, model_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(tokenizer, model_dtype)
        self.config = config

    @property
    def pixels_per_token(self) -> int:
        return self.config.pixels_per_token

    @torch.inference_mode()
    def plain(self, tokens: Tensor, grid: Grid) -> Tensor:
        images: Tensor = self.tokenizer.images_of(self._maps(grid).latent(tokens))
        return images

    def check(self, tokens: Tensor, grid: Grid | None = None) -> None:
        maps = self._maps(self.grid_of(tokens, grid))
        counts = list(accumulate(scale.num_cells for scale in maps.scales))
        if tokens.ndim != 2 + len(self.config.token_shape) or tokens.shape[1] not in counts:
            raise FlasharError(
                f"tokens have the shape {tuple(tokens.shape)}; expected those of the first one or more scales of each "
                f"image, so {', '.join(map(str, counts))}"
            )
        maps.quantizer.check_tokens(maps.split(tokens), maps.positions)

    def grid_of(self, tokens: Tensor, grid: Grid | None) -> Grid:
        return grid or self.config.order_grid

    def inputs(self, tokens: Tensor, grid: Grid) -> Tensor:
        """The latent, [B, Z, H, W]."""
        return self._maps(grid).latent(tokens).to(self.dtype)

    def _maps(self, grid: Grid) -> TokenMaps:
        return TokenMaps(self.config, self.tokenizer.quantizer, self.config.scales(grid))
