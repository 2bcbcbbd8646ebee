"""Token grids in memory with what they show.

Letters: M pictures, H grid rows, W grid columns, P prefix tokens, F text-feature dim.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions


@dataclass(frozen=True)
class CodeSet:
    """``codes`` int32 [M, H, W] in raster order; ``labels`` int64 [M], or caption ``features`` [M, P, F] and ``mask``
    [M, P]; ``ids`` [M] name the pictures, whatever the order of files.
    """

    codes: NDArray[np.int32]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64] | None = None
    features: NDArray[np.float32] | None = None
    mask: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[np.integer] | slice) -> CodeSet:
        """The pictures of these rows, in their order."""
        parts = (self.codes, self.ids, self.labels, self.features, self.mask)
        return CodeSet(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]

    def tensors(self, device: torch.device) -> tuple[Tensor, Conditions]:
        """Codes int64 [M, H, W] and conditions, on a device."""

        def move(part: NDArray | None) -> Tensor | None:
            return None if part is None else torch.from_numpy(part).to(device)

        codes = torch.from_numpy(self.codes.astype(np.int64)).to(device)
        return codes, Conditions(move(self.labels), move(self.features), move(self.mask))

    def fingerprint(self) -> str:
        """SHA-256 over codes, labels or captions, and ids, in the order of the ids."""
        order = np.argsort(self.ids, kind="stable")
        digest = hashlib.sha256(np.ascontiguousarray(self.codes[order], dtype="<i4").tobytes())
        for part in (self.labels, self.features, self.mask):
            if part is not None:
                digest.update(np.ascontiguousarray(part[order]).tobytes())
        digest.update("\n".join(self.ids[order].tolist()).encode())
        return digest.hexdigest()


def choose_rows(ids: NDArray[np.str_], labels: NDArray[np.int64], size: int | None, seed: int) -> NDArray[np.int64]:
    """Rows of ``size`` pictures, drawn by a hash of (seed, id) and so independent of file order, class by class as
    equally as the classes allow; all rows, in the order of that hash, for None or where there are no more.
    """
    if size is not None and size < 1:
        raise FlasharError(f"--subset is {size}; expected at least one picture")
    rank = np.array([_hash_id(seed, name) for name in ids.tolist()], dtype=np.uint64)
    order = np.lexsort((ids, rank))
    if size is None or size >= len(ids):
        return order
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
