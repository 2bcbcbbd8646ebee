"""Trains a codebook without gradients: every code follows what chose it.

Letters: B images, K codes, Z their width, h x w positions of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class CodebookAverage:
    """Keeps every code [K, Z] at the running mean of the latents that chose it, and restarts the unused ones. With
    ``unit`` only the direction of a code counts.
    """

    def __init__(self, codebook: Tensor, decay: float, seed: int, unit: bool) -> None:
        self.codebook, self.decay, self.unit = codebook, decay, unit
        self.counts = torch.zeros(len(codebook))  # running mean of how many latents of a batch chose each code
        self.sums = torch.zeros_like(codebook)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def update(self, tokens: Sequence[Tensor], latents: Sequence[Tensor]) -> None:
        """Moves the codes in place towards maps of latents [B, Z, h, w] that chose ``tokens`` [B, h, w]."""
        rows = torch.cat([_rows(latent) for latent in latents])
        chosen = torch.cat([each.flatten() for each in tokens])
        self.counts.lerp_(torch.bincount(chosen, minlength=len(self.codebook)).float(), 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, chosen, rows), 1 - self.decay)
        alive = self.sums.norm(dim=1) > 1e-6
        means = F.normalize(self.sums, dim=1) if self.unit else self.sums / self.counts.clamp(min=1e-6)[:, None]
        self.codebook[alive] = means[alive]

    @torch.no_grad()
    def restart_unused(self, latents: Sequence[Tensor], below: float) -> int:
        """Puts codes that fewer than ``below`` latents of a batch chose at latents, each of a random map; returns how
        many.
        """
        unused = (self.counts < below).nonzero().flatten()
        if len(unused):
            maps = torch.randint(len(latents), (len(unused),), generator=self.generator).tolist()
            picked = torch.stack([self._random_row(latents[index]) for index in maps])
            self.codebook[unused] = picked
            self.counts[unused] = 1.0
            self.sums[unused] = picked
        return len(unused)

    def _random_row(self, latent: Tensor) -> Tensor:
        rows = _rows(latent)
        return rows[int(torch.randint(len(rows), (1,), generator=self.generator))]


def _rows(latent: Tensor) -> Tensor:
    """[B, Z, h, w] -> float32 [B * h * w, Z]."""
    return latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1]).float()
