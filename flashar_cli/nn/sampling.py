"""Stateless sampling: logits and one uniform number per token in, codes out.

Letters: B batch, C cells, V codebook size, N = H*W cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashar_cli import bounds
from flashar_cli.errors import FlasharError
from flashar_cli.nn.hashing import hash_uniform


@dataclass(frozen=True)
class SamplingParams:
    """How codes are drawn. ``temperature`` 0 is argmax; ``top_k`` 0 and ``top_p`` 1 are off; ``cfg_scale`` 1 is no
    guidance; ``cfg_interval`` is the part of the cells, in decoding order, on which guidance acts.
    """

    cfg_scale: float = 1.0
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        start, end = self.cfg_interval
        bounds.CFG_SCALE.check("--cfg-scale", self.cfg_scale)
        bounds.TEMPERATURE.check("--temperature", self.temperature)
        bounds.TOP_K.check("--top-k", self.top_k)
        bounds.TOP_P.check("--top-p", self.top_p)
        if not 0 <= start < end <= 1:  # NaN fails every comparison
            raise FlasharError(f"--cfg-interval is {start}:{end}; expected A:B with 0 <= A < B <= 1")

    @property
    def guided(self) -> bool:
        return self.cfg_scale != 1.0

    @property
    def kind(self) -> SamplingKind:
        return SamplingKind(
            guided=self.guided,
            greedy=self.temperature == 0,
            tempered=self.temperature not in (0, 1),
            top_k=self.top_k,
            nucleus=self.top_p < 1.0,
        )

    def guides_cell(self, position: int, num_cells: int) -> bool:
        """Whether guidance acts on the step that starts at this position of the order."""
        start, end = self.cfg_interval
        return self.guided and start <= position / num_cells and (position / num_cells < end)


@dataclass(frozen=True)
class SamplingKind:
    """What of ``SamplingParams`` decides which operations run. Everything else are numbers: ``SamplingValues``."""

    guided: bool = False
    greedy: bool = False
    tempered: bool = False
    top_k: int = 0
    nucleus: bool = False


class SamplingValues(NamedTuple):
    """The numbers that sampling reads, float32 tensors of no dimension, so that they change without new operations."""

    temperature: Tensor
    top_p: Tensor

    @classmethod
    def of(cls, params: SamplingParams, device: torch.device | str = "cpu") -> SamplingValues:
        return cls(*(torch.tensor(value, device=device) for value in (params.temperature, params.top_p)))


def uniform_table(seed: int, first_image: int, num_images: int, num_cells: int) -> Tensor:
    """float32 [num_images, N] in [0, 1), raster order: one number for each (seed, image index, cell).

    A number depends on nothing but its own three indices: not on batch size, order, device or restart.
    """
    images = np.arange(first_image, first_image + num_images)[:, None]
    return torch.from_numpy(hash_uniform(seed, images, np.arange(num_cells)[None, :]))


def guide(logits_cond: Tensor, logits_uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance on logits: ``u + s * (c - u)``; exactly ``c`` at scale 1."""
    return torch.lerp(logits_uncond, logits_cond, scale)


def filter_logits(logits_BCV: Tensor, top_k: int, top_p: Tensor | None) -> Tensor:
    """Sets to -inf what is not among the ``top_k`` best (ties with the k-th are kept), then what lies beyond the
    smallest set of best codes whose probability reaches ``top_p`` (float32, no dimension; None: off).
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
    return logits_BCV


def sample(logits_BCV: Tensor, uniform_BC: Tensor, kind: SamplingKind, values: SamplingValues) -> Tensor:
    """int64 [B, C]: argmax where ``kind`` is greedy, else inverse-CDF sampling of the filtered distribution.

    Nothing here waits for the device or depends on its data, so it can stand in a CUDA graph.
    """
    if kind.greedy:
        return logits_BCV.argmax(dim=-1)
    top_p = values.top_p if kind.nucleus else None
    logits_BCV = logits_BCV.float()
    if kind.tempered:
        logits_BCV = logits_BCV / values.temperature
    cdf = _cumulative(filter_logits(logits_BCV, kind.top_k, top_p).softmax(dim=-1))
    # The code found lies before the last step of the cdf: a float32 u < 1 is at most 1 - 2^-24, so u * total, rounded
    # to nearest, is below total.
    return torch.searchsorted(cdf, uniform_BC[..., None] * cdf[..., -1:], right=True).squeeze(-1)


def _cumulative(rows_BCV: Tensor) -> Tensor:
    # A single row is summed on CUDA by a scan whose rounding differs from run to run; two rows or more are not.
    if rows_BCV.is_cuda and rows_BCV.numel() == rows_BCV.shape[-1]:
        return rows_BCV.repeat(2, 1, 1).cumsum(dim=-1)[:1]
    return rows_BCV.cumsum(dim=-1)
