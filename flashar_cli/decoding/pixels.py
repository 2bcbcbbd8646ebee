"""Image tokens to pictures: the one place that decides in which precision, how many at once, and compiled or not.

Letters: B pictures, H and W codes, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from flashar_cli.tokenizers.inference import InferenceDecoder
from flashar_cli.tokenizers.vq import VQTokenizer

# Pictures decoded at once. On a GPU this bounds memory: one map of 64 pictures of 256x256 with 128 channels has 1 GiB
# in bfloat16. On a CPU the maps of more than one such picture only leave the caches.
MAX_PICTURES, MAX_PIXELS_ON_CPU = 64, 256 * 256


def pixel_dtype(device: torch.device, model_dtype: torch.dtype) -> torch.dtype:
    """bfloat16 on CUDA for a model of 16 bits, else float32: no CPU has shown yet that bfloat16 is faster there."""
    return torch.bfloat16 if device.type == "cuda" and model_dtype.itemsize == 2 else torch.float32


class PixelDecoder:
    """Turns codes into pictures. The tokenizer must not be moved, cast or trained while this is in use.

    A picture follows from its codes; how many others are decoded with it changes it by rounding at most.
    """

    def __init__(self, tokenizer: VQTokenizer, model_dtype: torch.dtype = torch.float32) -> None:
        """``model_dtype`` is that of the model that draws the codes."""
        self.tokenizer = tokenizer
        self.device = tokenizer.post_quant_conv.weight.device
        self.dtype = pixel_dtype(self.device, model_dtype)

    def __call__(self, codes_BHW: Tensor) -> Tensor:
        """Codes int64 [B, H, W], not checked -> float32 [B, 3, h, w], about [-1, 1] and not clamped."""
        return self._in_parts(self._decoder, codes_BHW)

    def compiled(self, codes_BHW: Tensor) -> Tensor:
        """The same through ``torch.compile``, whose errors it raises."""
        return self._in_parts(self._compiled, codes_BHW)

    def num_parts(self, batch: int, height: int, width: int) -> int:
        """In how many parts, of about the same size, so many grids of codes are decoded."""
        pixels = height * width * self.tokenizer.config.downsample**2
        at_once = MAX_PICTURES if self.device.type != "cpu" else max(1, MAX_PIXELS_ON_CPU // pixels)
        return max(1, -(-batch // at_once))

    @torch.inference_mode()
    def _in_parts(self, decode: Callable[[Tensor], Tensor], codes_BHW: Tensor) -> Tensor:
        parts = codes_BHW.to(self.device).chunk(self.num_parts(*codes_BHW.shape))
        return torch.cat([decode(part).float() for part in parts])

    @cached_property
    def _decoder(self) -> InferenceDecoder:
        return InferenceDecoder(self.tokenizer, self.dtype).eval()

    @cached_property
    def _compiled(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self._decoder, fullgraph=True)
