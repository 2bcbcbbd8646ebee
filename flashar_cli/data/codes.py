"""Token grids in memory with what they show.

Letters: M pictures, A views, H grid rows, W grid columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.data.features import CaptionFeatures
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions

_DIGEST_ROWS = 65_536  # pictures hashed at a time


@dataclass(frozen=True)
class CodeSet:
    """``codes`` integers [M, A, H, W] in raster order, or [M, H, W] for one view; ``labels`` int64 [M] or ``captions``
    of M pictures; ``ids`` [M] name the pictures, whatever the order of files.
    """

    codes: NDArray[np.integer]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64] | None = None
    captions: CaptionFeatures | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim == 3:
            object.__setattr__(self, "codes", self.codes[:, None])

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_views(self) -> int:
        """A."""
        return self.codes.shape[1]

    def take(self, rows: NDArray[np.integer] | slice) -> CodeSet:
        """The pictures of these rows, in their order."""
        return CodeSet(
            self.codes[rows],
            self.ids[rows],
            None if self.labels is None else self.labels[rows],
            None if self.captions is None else self.captions.take(rows),
        )

    def tensors(self, device: torch.device, views: NDArray[np.int64] | None = None) -> tuple[Tensor, Conditions]:
        """Codes int64 [M, H, W] and conditions, on a device: of view 0, or of ``views`` [M]."""
        chosen = self.codes[:, 0] if views is None else self.codes[np.arange(len(self)), views]
        codes = torch.from_numpy(chosen.astype(np.int64)).to(device)
        if self.captions is not None:
            return codes, self.captions.conditions().to(device)
        return codes, Conditions(None if self.labels is None else torch.from_numpy(self.labels).to(device))

    def fingerprint(self) -> str:
        """SHA-256 over codes, labels or captions, and ids, in the order of the ids."""
        order = np.argsort(self.ids, kind="stable")
        digest = hashlib.sha256()
        for start in range(0, len(order), _DIGEST_ROWS):
            digest.update(np.ascontiguousarray(self.codes[order[start : start + _DIGEST_ROWS]], dtype="<i4").tobytes())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels[order]).tobytes())
        if self.captions is not None:
            digest.update("\n".join(self.captions.take(order).texts.tolist()).encode())
        digest.update("\n".join(self.ids[order].tolist()).encode())
        return digest.hexdigest()


def ids_sha256(ids: NDArray[np.str_]) -> str:
    """SHA-256 of a set of ids: the same for the same pictures in any order."""
    return hashlib.sha256("\n".join(sorted(ids.tolist())).encode()).hexdigest()


def choose_rows(
    ids: NDArray[np.str_], labels: NDArray[np.int64] | None, size: int | None, seed: int
) -> NDArray[np.int64]:
    """Rows of ``size`` pictures, drawn by a hash of (seed, id) and so independent of file order, class by class as
    equally as the classes allow where there are labels; all rows, in the order of that hash, for None or where there
    are no more.
    """
    if size is not None and size < 1:
        raise FlasharError(f"--subset is {size}; expected at least one picture")
    rank = np.array([_hash_id(seed, name) for name in ids.tolist()], dtype=np.uint64)
    order = np.lexsort((ids, rank))
    if size is None or size >= len(ids):
        return order
    if labels is None:
        return order[:size]
    # Round r takes the r-th picture of every class, so class counts differ by at most one while all classes last.
    turn = np.empty(len(ids), np.int64)
    seen: dict[int, int] = {}
    for row in order.tolist():
        label = int(labels[row])
        turn[row] = seen.get(label, 0)
        seen[label] = seen.get(label, 0) + 1
    chosen = order[np.argsort(turn[order], kind="stable")][:size]
    return chosen[np.lexsort((ids[chosen], rank[chosen]))]


def split_validation(data: CodeSet, num_validation: int) -> tuple[CodeSet, CodeSet]:
    """The last ``num_validation`` pictures apart from the others; at least one stays on each side."""
    if len(data) < 2:
        raise FlasharError(f"{len(data)} pictures are too few to train and validate on; expected at least 2")
    num_validation = max(1, min(num_validation, len(data) // 2))
    return data.take(slice(0, len(data) - num_validation)), data.take(slice(len(data) - num_validation, len(data)))


def _hash_id(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
