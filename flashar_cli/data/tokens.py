"""Token grids in memory, with what their images show.

Letters: M images, A views, H grid rows, W grid columns.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.data.conditions import Subjects
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions

_DIGEST_ROWS = 65_536  # images hashed at a time


@dataclass(frozen=True)
class TokenSet:
    """``tokens`` integers [M, A, H, W] in raster order, or [M, H, W] for one view; ``ids`` [M] name the images,
    independently of the order of files; ``subjects`` say what the images show.
    """

    tokens: NDArray[np.integer]
    ids: NDArray[np.str_]
    subjects: Subjects

    def __post_init__(self) -> None:
        if self.tokens.ndim == 3:
            object.__setattr__(self, "tokens", self.tokens[:, None])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_views(self) -> int:
        """A."""
        return self.tokens.shape[1]

    def take(self, rows: NDArray[np.integer] | slice) -> TokenSet:
        """The images of these rows, in this order."""
        return TokenSet(self.tokens[rows], self.ids[rows], self.subjects.take(rows))

    def of_one_shape(self) -> TokenSet:
        """The same images; those of any rows have tensors of the same shapes but for their number."""
        return replace(self, subjects=self.subjects.of_one_shape())

    def tensors(self, device: torch.device, views: NDArray[np.int64] | None = None) -> tuple[Tensor, Conditions]:
        """Tokens int64 [M, H, W] of view 0, or of ``views`` [M], and conditions, on a device."""
        chosen = self.tokens[:, 0] if views is None else self.tokens[np.arange(len(self)), views]
        return torch.from_numpy(chosen.astype(np.int64)).to(device), self.subjects.conditions().to(device)

    def fingerprint(self) -> str:
        """SHA-256 of tokens, labels or captions, and ids, sorted by id."""
        order = np.argsort(self.ids, kind="stable")
        digest = hashlib.sha256()
        for start in range(0, len(order), _DIGEST_ROWS):
            digest.update(np.ascontiguousarray(self.tokens[order[start : start + _DIGEST_ROWS]], dtype="<i4").tobytes())
        digest.update(self.subjects.take(order).content())
        digest.update("\n".join(self.ids[order].tolist()).encode())
        return digest.hexdigest()


def ids_sha256(ids: NDArray[np.str_]) -> str:
    """SHA-256 of a set of ids: the same for the same images in any order."""
    return hashlib.sha256("\n".join(sorted(ids.tolist())).encode()).hexdigest()


def choose_rows(
    ids: NDArray[np.str_], labels: NDArray[np.int64] | None, size: int | None, seed: int
) -> NDArray[np.int64]:
    """Rows of ``size`` images, all for None or where there are no more, sorted by a hash of (seed, id), whatever the
    order of files. With labels, the rows are spread over the classes as equally as possible.
    """
    if size is not None and size < 1:
        raise FlasharError(f"--subset is {size}; expected at least one image")
    digests = (hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in ids.tolist())
    rank = np.array([int.from_bytes(digest[:8], "little") for digest in digests], dtype=np.uint64)
    order = np.lexsort((ids, rank))
    if size is None or size >= len(ids):
        return order
    if labels is None:
        return order[:size]
    # Round r takes the r-th image of every class, so class counts differ by at most one until a class has no more.
    turn, seen = np.empty(len(ids), np.int64), Counter[int]()
    for row, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        turn[row] = seen[label]
        seen[label] += 1
    chosen = order[np.argsort(turn[order], kind="stable")][:size]
    return chosen[np.lexsort((ids[chosen], rank[chosen]))]


def split_validation(data: TokenSet, num_validation: int) -> tuple[TokenSet, TokenSet]:
    """All images but the last ``num_validation``, and these; each has at least one image."""
    if len(data) < 2:
        raise FlasharError(f"{len(data)} images are too few to train and validate on; expected at least 2")
    num_validation = max(1, min(num_validation, len(data) // 2))
    return data.take(slice(-num_validation)), data.take(slice(-num_validation, None))
