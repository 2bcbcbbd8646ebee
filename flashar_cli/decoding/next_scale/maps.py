"""Between the tokens of an image and its latent, scale by scale.

Letters: B images, S tokens of a map, L tokens of all maps, Z values of the latent at a position, H x W its positions,
Q positions of a token along each side, so that a token has Z * Q * Q values.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from flashar_cli.config import NextScaleConfig
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.next_scale import ScaleQuantizer, patchify, unpatchify


class TokenMaps:
    """The maps of tokens of one schedule. Tokens are int64 [B, S] or, where they are bits, uint8 [B, S, Z * Q * Q]."""

    def __init__(self, config: NextScaleConfig, quantizer: ScaleQuantizer, scales: tuple[Grid, ...]) -> None:
        self.quantizer, self.scales, self.patch = quantizer, scales, config.patch
        self.positions = tuple(Grid(scale.height * self.patch, scale.width * self.patch) for scale in scales)
        self.latent_dim = config.tokenizer.latent_dim

    def blank(self, batch: int, device: torch.device) -> Tensor:
        """The latent of no tokens at all, float32 [B, Z, H, W]."""
        last = self.positions[-1]
        return torch.zeros(batch, self.latent_dim, last.height, last.width, device=device)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """The tokens of the first one or more scales, one map after the other, as the quantizer has them: a tensor for
        each scale.
        """
        bounds = pairwise(accumulate((scale.num_cells for scale in self.scales), initial=0))
        pieces = [tokens[:, first:last] for first, last in bounds if last <= tokens.shape[1]]
        return [self._laid_out(index, piece) for index, piece in enumerate(pieces)]

    def contribution(self, index: int, tokens: Tensor) -> Tensor:
        """What the tokens of a scale add to the latent, float32 [B, Z, H, W]."""
        codes = self.quantizer.codes(self._laid_out(index, tokens))
        return self.quantizer.contribution(codes, index, self.positions)

    def seen(self, index: int, latent_BZHW: Tensor) -> Tensor:
        """What the model reads of the latent before it predicts a scale, float32 [B, S, Z * Q * Q]."""
        resized = self.quantizer.resized(latent_BZHW, self.positions[index])
        return patchify(resized.permute(0, 2, 3, 1), self.patch)

    def latent(self, tokens: Tensor) -> Tensor:
        """The sum of what the tokens of the first one or more scales add, float32 [B, Z, H, W]."""
        return self.quantizer.latent(self.split(tokens), self.positions)

    def inputs(self, tokens: Tensor) -> Tensor:
        """What a teacher-forced model reads: of the tokens of all scales, [B, L] or [B, L, Z * Q * Q], float32
        [B, L - 1, Z * Q * Q].
        """
        latent, found = self.blank(len(tokens), tokens.device), []
        for index, part in enumerate(tokens.split([scale.num_cells for scale in self.scales], dim=1)[:-1]):
            latent = latent + self.contribution(index, part)
            found.append(self.seen(index + 1, latent))
        return torch.cat(found, dim=1)

    def _laid_out(self, index: int, tokens: Tensor) -> Tensor:
        scale = self.scales[index]
        if self.patch > 1:
            return unpatchify(tokens, scale, self.patch)
        return tokens.unflatten(1, (scale.height, scale.width))
