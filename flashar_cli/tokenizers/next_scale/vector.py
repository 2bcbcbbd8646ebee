"""VAR's multi-scale residual vector quantisation (Tian et al. 2024, arXiv 2404.02905, section 3.2, algorithms 1 and 2).

Upstream: FoundationVision/VAR models/quant.py
Letters: B images, K codebook size, Z codebook dim, h x w positions of a scale, H x W of the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import MultiScaleVQConfig
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.codebook import best_rows
from flashar_cli.tokenizers.next_scale.quantizer import ScaleQuantizer


class MultiScaleVQ(ScaleQuantizer):
    """Tokens int64 [B, h, w] are rows of one codebook. A map of codes, when it is as large as the latent, passes a
    convolution, one of a few that neighbouring scales share.
    """

    to_last, to_next = "bicubic", "area"

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.num_values = config.codebook_size
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        self.residuals = nn.ModuleList(
            ResidualConv(config.codebook_dim, config.residual_share) for _ in range(config.num_residuals)
        )

    def codes(self, tokens: Tensor) -> Tensor:
        """Integers [B, h, w] in 0 .. K-1 -> float32 [B, Z, h, w]."""
        return self.embedding(tokens.long()).float().permute(0, 3, 1, 2)

    def quantize(self, latent: Tensor) -> Tensor:
        """float32 [B, Z, h, w] -> the nearest rows, int64 [B, h, w]."""
        codebook = self.embedding.weight.float()
        with torch.autocast(latent.device.type, enabled=False):
            # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2), of which the first part is the same for all rows.
            return best_rows(latent, codebook, -codebook.square().sum(dim=1) / 2)

    def contribution(self, codes: Tensor, index: int, scales: Sequence[Grid]) -> Tensor:
        residual = self.residuals[residual_of(index, len(scales), len(self.residuals))]
        return residual(super().contribution(codes, index, scales))


class ResidualConv(nn.Conv2d):
    """A 3x3 convolution that makes a ``share`` of its output; the rest is the input. [B, Z, H, W], in float32."""

    def __init__(self, dim: int, share: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        assert self.bias is not None
        with torch.autocast(features.device.type, enabled=False):
            made = F.conv2d(features, self.weight.float(), self.bias.float(), padding=1)
        return (1 - self.share) * features + self.share * made


def residual_of(index: int, num_scales: int, num_residuals: int) -> int:
    """Which convolution the scale number ``index`` passes: scales and convolutions are spread over 0 .. 1, and the
    nearest is taken.
    """
    # Kept for parity: four convolutions lie nearer to the ends than any other number of them, and the rounding errors
    # of float64 decide ties, as those of scales 2 and 7 of ten (upstream: PhiPartiallyShared).
    margin = 1 / (3 if num_residuals == 4 else 2) / num_residuals
    places = np.linspace(margin, 1 - margin, num_residuals)
    return int(np.argmin(np.abs(places - index / max(1, num_scales - 1))))
