"""A latent as the sum of maps of tokens, coarse to fine: what the quantizers of next-scale models have in common.

Letters: B images, Z values of the latent at a position, h x w positions of a scale, H x W of the last one. A scale is
the grid of its map on the latent, so of h x w positions; ``scales`` are always all those of an image, also where only
its first maps are there. The latent and all that is added to it are float32, whatever dtype the weights have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.base import check_range

Mode = Literal["area", "bilinear", "bicubic"]


class ScaleQuantizer(nn.Module, ABC):
    """Maps of tokens to a latent and back. Nothing waits for the device, and every shape follows from the scales."""

    to_last: ClassVar[Mode]  # how a map of codes becomes as large as the latent
    to_next: ClassVar[Mode]  # how the latent becomes as large as the next scale's map, the model's next input
    token_axes: tuple[int, ...] = ()  # of one token
    num_values: int  # a token, or each part of it, is one of 0 .. num_values-1

    @abstractmethod
    def codes(self, tokens: Tensor) -> Tensor:
        """One scale's tokens -> float32 [B, Z, h, w]. What the tokens are is the quantizer's matter; not checked."""

    @abstractmethod
    def quantize(self, latent: Tensor) -> Tensor:
        """float32 [B, Z, h, w] -> the tokens whose codes fit best."""

    def contribution(self, codes: Tensor, index: int, scales: Sequence[Grid]) -> Tensor:
        """What the scale number ``index`` of ``scales`` adds to the latent: its codes float32 [B, Z, h, w] -> float32
        [B, Z, H, W].
        """
        return _resized(codes, scales[-1], self.to_last)

    def resized(self, latent: Tensor, scale: Grid) -> Tensor:
        """The latent so far as the model sees it before it predicts ``scale``: float32 [B, Z, H, W] -> [B, Z, h, w]."""
        return _resized(latent, scale, self.to_next)

    def latent(self, tokens: Sequence[Tensor], scales: Sequence[Grid]) -> Tensor:
        """The tokens of the first one or more of ``scales`` -> their sum, float32 [B, Z, H, W]. Not checked."""
        parts = (self.contribution(self.codes(each), index, scales) for index, each in enumerate(tokens))
        return reduce(torch.add, parts)

    def check_tokens(self, tokens: Sequence[Tensor], scales: Sequence[Grid]) -> None:
        """Raises FlasharError unless these can be the tokens of the first one or more of ``scales``. Unlike all else it
        waits for the device.
        """
        if not 1 <= len(tokens) <= len(scales):
            raise FlasharError(f"there are tokens of {len(tokens)} scales; expected 1 .. {len(scales)}")
        for index, (each, scale) in enumerate(zip(tokens, scales, strict=False)):
            expected = (*tokens[0].shape[:1], scale.height, scale.width, *self.token_axes)
            if each.shape != expected or each.is_floating_point():
                found = f"{each.dtype} {tuple(each.shape)}"
                raise FlasharError(f"the tokens of scale {index} are {found}; expected integers {expected}")
            check_range(each, self.num_values)

    @torch.no_grad()
    def search(self, latent: Tensor, scales: Sequence[Grid]) -> list[Tensor]:
        """[B, Z, H, W] -> the tokens of each scale. Each scale encodes what those before it have left."""
        rest, found = latent.float(), []
        for index, scale in enumerate(scales):
            tokens = self.quantize(_resized(rest, scale, "area"))
            rest = rest - self.contribution(self.codes(tokens), index, scales)
            found.append(tokens)
        return found


def _resized(features: Tensor, size: Grid, mode: Mode) -> Tensor:
    """[B, Z, h, w] -> [B, Z, *size]; the same map where it has this size already."""
    sides = (size.height, size.width)
    return features if features.shape[-2:] == sides else F.interpolate(features, sides, mode=mode)
