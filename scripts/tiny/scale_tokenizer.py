"""The multi-scale image tokenizer of var-tiny: its shape, its training forward, its quality.

Letters: B images, Z values of the latent at a position, h x w positions of a scale, H x W of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import MultiScaleVQConfig
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import ScaleTokenizer
from flashar_cli.tokenizers.codebook import TrainingOutput
from flashar_cli.tokenizers.pixels import from_uint8, psnr_db, to_uint8

SCALES = tuple(Grid(side, side) for side in (1, 2, 4, 6, 8, 12, 16))
# 64x64 images -> a latent of 16x16. Both ends have 64 channels, as GroupNorm(32) needs to keep mean colours.
SCALE_CONFIG = MultiScaleVQConfig(
    codebook_size=256, codebook_dim=8, channels=32, multipliers=(2, 1, 2), num_res_blocks=1
)


@dataclass(frozen=True)
class ScaleOutput(TrainingOutput):
    """``tokens`` are those of the last scale. ``encoded`` are the tokens int64 [B, h, w] of each scale, and what they
    stand for, float [B, Z, h, w].
    """

    encoded: tuple[list[Tensor], list[Tensor]]


class ScaleTraining(nn.Module):
    """The training forward of a multi-scale tokenizer, with straight-through gradients (VAR, arXiv 2404.02905: section
    3.2). Codes get no gradients; the convolutions of the quantizer are trained by the codebook loss.
    """

    def __init__(self, tokenizer: ScaleTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, strength: float | Tensor = 1.0) -> ScaleOutput:
        """float [B, 3, 64, 64] in [-1, 1]; ``strength`` in 0 .. 1 moves the decoder's input from the latent to the sum
        of its codes.
        """
        tokenizer, quantizer = self.tokenizer, self.tokenizer.quantizer
        latent = tokenizer.quant_conv(tokenizer.encoder(images)).float()
        target, summed = latent.detach(), torch.zeros_like(latent)
        tokens, encoded, errors, commitments = [], [], [], []
        for index, scale in enumerate(SCALES):
            rest = F.interpolate(target - summed.detach(), (scale.height, scale.width), mode="area")
            tokens.append(quantizer.quantize(rest))
            encoded.append(rest)
            summed = summed + quantizer.contribution(quantizer.codes(tokens[-1]), index, SCALES)
            errors.append(F.mse_loss(summed, target))
            commitments.append(F.mse_loss(latent, summed.detach()))
        passed = latent + strength * (summed - latent).detach()
        reconstruction = tokenizer.images_of(passed)
        losses = (torch.stack(each).mean() for each in (errors, commitments))
        return ScaleOutput(reconstruction, *losses, tokens[-1], latent, (tokens, encoded))


@dataclass(frozen=True)
class ScaleReport:
    """Quality on held-out images."""

    num_images: int
    psnr_db: float
    psnr_db_of_scales: tuple[float, ...]  # of the first, of the first two, ..
    codes_used: int
    code_entropy_nats: float  # of single codes of all scales


@torch.no_grad()
def evaluate_scale_tokenizer(model: ScaleTokenizer, batches: Iterable[Tensor]) -> ScaleReport:
    """PSNR of uint8 reconstructions from the first one or more scales, and code statistics, on images float
    [B, 3, 64, 64] in [-1, 1].
    """
    errors, counts, num_images = torch.zeros(len(SCALES)), torch.zeros(model.quantizer.num_values), 0
    for images in batches:
        tokens = model.encode(images, SCALES)
        num_images += len(images)
        counts += torch.bincount(torch.cat([each.flatten() for each in tokens]), minlength=len(counts))
        for last in range(len(SCALES)):
            seen = from_uint8(to_uint8(model.decode(tokens[: last + 1], SCALES)))
            errors[last] += len(images) * 10 ** (-psnr_db(seen, images) / 10)
    decibels = tuple(-10 * math.log10(error / num_images) for error in errors.tolist())
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * shares.log()).sum())
    return ScaleReport(num_images, decibels[-1], decibels, len(shares), entropy)
