"""Stateless sampling: logits and one uniform number per token in, tokens out.

Letters: B batch, C cells, V codebook size, N = H*W cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.config import Sampling
from flashar_cli.nn.hashing import hash_uniform


@dataclass(frozen=True)
class SamplingKind:
    """The part of ``Sampling`` that decides which operations run. The rest are numbers: ``SamplingValues``."""

    guided: bool = False
    greedy: bool = False
    tempered: bool = False
    top_k: int = 0
    nucleus: bool = False
    min_p: bool = False

    @classmethod
    def of(cls, sampling: Sampling) -> SamplingKind:
        return cls(
            guided=sampling.guided,
            greedy=sampling.temperature == 0,
            tempered=sampling.temperature not in (0, 1),
            top_k=sampling.top_k,
            nucleus=sampling.top_p < 1.0,
            min_p=sampling.min_p > 0.0,
        )


class SamplingValues(NamedTuple):
    """The numbers that sampling reads: float32 tensors of no dimension, so that a captured graph can get others."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor

    @classmethod
    def of(cls, sampling: Sampling, device: torch.device | str = "cpu") -> SamplingValues:
        return cls(*(torch.tensor(float(getattr(sampling, name)), device=device) for name in cls._fields))

    def fill(self, sampling: Sampling) -> None:
        """Copies in the numbers of other settings."""
        for name in self._fields:
            getattr(self, name).fill_(getattr(sampling, name))


def uniform_table(seed: int, first_image: int, num_images: int, num_cells: int) -> Tensor:
    """float32 [num_images, N] in [0, 1), raster order: one number for each (seed, image index, cell). It depends on
    these three alone, not on batch size, order, device or a restart.
    """
    images = np.arange(first_image, first_image + num_images)[:, None]
    return torch.from_numpy(hash_uniform(seed, images, np.arange(num_cells)[None, :]))


def uniform_bits(uniform: Tensor) -> NDArray[np.int64]:
    """The 24 random bits of each number of ``uniform_table``, of the same shape, from which others can be hashed."""
    return (uniform.double().cpu().numpy() * 2**24).astype(np.int64)


def guide(logits_cond: Tensor, logits_uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: ``u + s * (c - u)``; exactly ``c`` at scale 1."""
    return torch.lerp(logits_uncond, logits_cond, scale)


def filter_logits(logits_BCV: Tensor, top_k: int, top_p: Tensor | None = None, min_p: Tensor | None = None) -> Tensor:
    """Excludes tokens by logits of -inf: those not among the ``top_k`` best (ties with the k-th are kept), then those
    outside the smallest set of best tokens whose probability reaches ``top_p``, then those less than ``min_p`` times as
    likely as the best (arXiv 2407.01082). ``top_p`` and ``min_p``: float32, no dimension; None: off.
    """
    if 0 < top_k < logits_BCV.shape[-1]:
        kth = logits_BCV.topk(top_k, dim=-1).values[..., -1:]
        logits_BCV = logits_BCV.masked_fill(logits_BCV < kth, -torch.inf)
    if top_p is not None:
        ordered, index = logits_BCV.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = _cumulative(probabilities) - probabilities
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits_BCV = torch.full_like(logits_BCV, -torch.inf).scatter(-1, index, ordered)
    if min_p is not None:
        best = logits_BCV.amax(dim=-1, keepdim=True)
        logits_BCV = logits_BCV.masked_fill(logits_BCV < best + min_p.log(), -torch.inf)
    return logits_BCV


def sample(logits_BCV: Tensor, uniform_BC: Tensor, kind: SamplingKind, values: SamplingValues) -> Tensor:
    """int64 [B, C]: argmax where ``kind`` is greedy, else inverse-CDF sampling of the filtered distribution.

    Nothing here waits for the device or depends on its data, so it can stand in a CUDA graph.
    """
    if kind.greedy:
        return logits_BCV.argmax(dim=-1)
    return draw(probabilities(logits_BCV, kind, values), uniform_BC)


def probabilities(logits_BCV: Tensor, kind: SamplingKind, values: SamplingValues) -> Tensor:
    """The distributions that ``sample`` draws from, float32 [B, C, V]."""
    if kind.greedy:
        return F.one_hot(logits_BCV.argmax(dim=-1), logits_BCV.shape[-1]).float()
    top_p, min_p = values.top_p if kind.nucleus else None, values.min_p if kind.min_p else None
    logits_BCV = logits_BCV.float()
    if kind.tempered:
        logits_BCV = logits_BCV / values.temperature
    return filter_logits(logits_BCV, kind.top_k, top_p, min_p).softmax(dim=-1)


def draw(weights_BCV: Tensor, uniform_BC: Tensor) -> Tensor:
    """int64 [B, C]: one option for each uniform number, with chances in proportion to weights float32 [B, C, V], of
    which each cell has some above 0.
    """
    cdf = _cumulative(weights_BCV)
    # The search always ends before the last step of the cdf: a float32 u < 1 is at most 1 - 2^-24, so u * total,
    # rounded to nearest, is below total.
    return torch.searchsorted(cdf, uniform_BC[..., None] * cdf[..., -1:], right=True).squeeze(-1)


def _cumulative(rows_BCV: Tensor) -> Tensor:
    # CUDA sums a single row by a scan whose rounding differs from run to run, but not two rows or more.
    if rows_BCV.is_cuda and rows_BCV.numel() == rows_BCV.shape[-1]:
        return rows_BCV.repeat(2, 1, 1).cumsum(dim=-1)[:1]
    return rows_BCV.cumsum(dim=-1)
