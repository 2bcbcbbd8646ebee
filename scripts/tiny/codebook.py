"""Thins out a trained codebook: fewer, more different codes make an image's codes easier to predict."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers import build_tokenizer
from flashar_cli.tokenizers.codebook import CodebookTokenizer

# Merging at the lowest loss of precision alone would be power 1; a lower power merges frequent near-equal codes sooner,
# and these are what makes plain areas flicker.
USE_POWER = 0.3


@torch.no_grad()
def merge_codes(tokenizer: CodebookTokenizer, images: Tensor, num_codes: int) -> CodebookTokenizer:
    """A copy of ``tokenizer`` with ``num_codes`` codes: the closest pairs are merged one after another.

    ``images`` float [B, 3, h, w] in [-1, 1] say how often each code is used. A merged code is the use-weighted mean
    direction, of length 1. Raises FlasharError where the codebook has fewer codes than asked for.
    """
    size = tokenizer.config.codebook_size
    if not 2 <= num_codes <= size:
        raise FlasharError(f"can't merge {size} codes into {num_codes}; expected 2 .. {size}")
    codes = torch.cat([tokenizer.encode(part) for part in images.split(50)])
    uses = torch.bincount(codes.flatten(), minlength=size).double() + 1e-3
    vectors = tokenizer.quantize.codebook().double()  # [K, Z]
    for _ in range(size - num_codes):
        first, second = _cheapest_pair(vectors, uses)
        vectors[first] = F.normalize(vectors[first] * uses[first] + vectors[second] * uses[second], dim=0)
        uses[first] += uses[second]
        kept = torch.arange(len(vectors)) != second
        vectors, uses = vectors[kept], uses[kept]
    merged = build_tokenizer(tokenizer.config.model_copy(update={"codebook_size": num_codes}))
    merged.load_state_dict(tokenizer.state_dict() | {"quantize.embedding.weight": vectors.float()})
    return merged.eval()


def _cheapest_pair(vectors: Tensor, uses: Tensor) -> tuple[int, int]:
    """Indices of the two codes that are cheapest to merge."""
    distances = torch.cdist(vectors, vectors).square()  # [K, K]
    cost = distances * (uses[:, None] * uses / (uses[:, None] + uses)) ** USE_POWER
    cost.fill_diagonal_(torch.inf)
    first, second = divmod(int(cost.argmin()), len(uses))
    return first, second
