"""Image tokens to images. Only this module decides the precision, how many are decoded at once, and what is compiled.

Letters: B images, H and W tokens, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from flashar_cli.tokenizers import ImageTokenizer, inference_decoder

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

    def __init__(self, tokenizer: ImageTokenizer, model_dtype: torch.dtype = torch.float32) -> None:
        """``model_dtype`` is the dtype of the model that samples the tokens."""
        self.tokenizer = tokenizer
        self.device = tokenizer.device
        self.dtype = pixel_dtype(self.device, model_dtype)

    def __call__(self, tokens_BHW: Tensor) -> Tensor:
        """Tokens int64 [B, H, W], not checked -> float32 [B, 3, h, w], about [-1, 1] and not clamped."""
        return self._in_parts(self._decoder, tokens_BHW)

    def compiled(self, tokens_BHW: Tensor) -> Tensor:
        """The same through ``torch.compile``; raises the compiler's errors."""
        return self._in_parts(self._compiled, tokens_BHW)

    def num_parts(self, batch: int, height: int, width: int) -> int:
        """How many parts of about the same size ``batch`` token grids are decoded in."""
        pixels = height * width * self.tokenizer.config.downsample**2
        at_once = MAX_IMAGES if self.device.type != "cpu" else max(1, MAX_PIXELS_ON_CPU // pixels)
        return max(1, -(-batch // at_once))

    @torch.inference_mode()
    def _in_parts(self, decode: Callable[[Tensor], Tensor], tokens_BHW: Tensor) -> Tensor:
        parts = tokens_BHW.to(self.device).chunk(self.num_parts(*tokens_BHW.shape))
        return torch.cat([decode(part).float() for part in parts])

    @cached_property
    def _decoder(self) -> nn.Module:
        return inference_decoder(self.tokenizer, self.dtype)

    @cached_property
    def _compiled(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self._decoder, fullgraph=True)
