"""Infinity's multi-scale binary spherical quantisation (Han et al. 2024, arXiv 2412.04431, section 3.2; Zhao et al.
2024, arXiv 2406.07548).

Upstream: FoundationVision/Infinity infinity/models/bsq_vae/multiscale_bsq.py
Letters: B images, Z bits of a position, h x w positions of a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.config import BSQConfig
from flashar_cli.tokenizers.next_scale.quantizer import ScaleQuantizer


class MultiScaleBSQ(ScaleQuantizer):
    """Tokens are bits [B, h, w, Z], 0 or 1 of any integer type: the signs of a code of length 1. It has no weights."""

    # Kept for parity: the model's input is interpolated also where it becomes smaller (upstream: infinity.py,
    # bitwise_self_correction.py), unlike what is encoded.
    to_last, to_next = "bilinear", "bilinear"

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        self.token_axes, self.num_values = (config.num_bits,), 2
        self.length = config.num_bits**0.5

    def codes(self, tokens: Tensor) -> Tensor:
        """Bits [B, h, w, Z] -> float32 [B, Z, h, w], each -1 or 1 over sqrt(Z)."""
        return (2 * tokens.float() - 1).permute(0, 3, 1, 2) / self.length

    def quantize(self, latent: Tensor) -> Tensor:
        """float32 [B, Z, h, w] -> bits uint8 [B, h, w, Z], 1 where a value is positive. That is the nearest code on the
        sphere, whatever the latent's length.
        """
        return (latent > 0).to(torch.uint8).permute(0, 2, 3, 1)
