"""Caption features on disk: a safetensors file for each shard with the valid tokens of its captions, read on demand.

Letters: M captions, P prefix positions, F text-feature dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.data.conditions.base import Captions
from flashar_cli.errors import FlasharError
from flashar_cli.files.tensors import open_safetensors
from flashar_cli.models.prefix import Conditions

FEATURES, LENGTHS = "features", "lengths"
FEATURE_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class CaptionFeatures(Captions):
    """M captions: ``texts`` [M]; caption k has its tokens at rows ``start[k] .. start[k] + length[k] - 1`` of
    ``files[file[k]]``. ``num_positions`` is P, ``feature_dim`` F.
    """

    texts: NDArray[np.object_]
    files: tuple[Path, ...]
    file: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    num_positions: int
    feature_dim: int

    def take(self, rows: NDArray[np.integer] | slice) -> CaptionFeatures:
        return replace(
            self, texts=self.texts[rows], file=self.file[rows], start=self.start[rows], length=self.length[rows]
        )

    def conditions(self) -> Conditions:
        """Features float32 [M, P, F] and mask float32 [M, P], left-padded, read from disk."""
        features = torch.zeros(len(self), self.num_positions, self.feature_dim)
        mask = torch.zeros(len(self), self.num_positions)
        places = zip(self.file.tolist(), self.start.tolist(), self.length.tolist(), strict=True)
        for row, (file, start, length) in enumerate(places):
            features[row, self.num_positions - length :] = _rows(self.files[file])[start : start + length].float()
            mask[row, self.num_positions - length :] = 1
        return Conditions(features=features, mask=mask)


def feature_bytes(features_BPF: Tensor, mask_BP: Tensor) -> bytes:
    """The file of right-padded captions: their valid tokens ``features`` bfloat16 [total, F], ``lengths`` int32 [B]."""
    valid = features_BPF.to(torch.bfloat16)[mask_BP > 0].contiguous()
    return safetensors.torch.save({FEATURES: valid, LENGTHS: mask_BP.sum(dim=1).to(torch.int32)})


def open_features(
    files: list[Path], texts: NDArray[np.object_], num_positions: int, feature_dim: int
) -> CaptionFeatures:
    """The captions ``texts`` with their features in these files. Raises FlasharError where the files don't fit them."""
    lengths, owners, starts = [], [], []
    for index, path in enumerate(files):
        with open_safetensors(path) as tensors:
            raw, kept = tensors.get_tensor(LENGTHS), tensors.get_slice(FEATURES)
            shape, dtype = list(kept.get_shape()), kept.get_dtype()
        if raw.ndim != 1 or raw.dtype not in (torch.int32, torch.int64) or dtype not in FEATURE_DTYPES:
            raise FlasharError(
                f"{path} holds lengths {list(raw.shape)} of {raw.dtype} and features of {dtype}; encode again"
            )
        length = raw.numpy().astype(np.int64)
        fits = length.min(initial=0) >= 0 and length.max(initial=0) <= num_positions
        if not fits or shape != [int(length.sum()), feature_dim]:
            raise FlasharError(
                f"{path} holds features {shape} of captions with up to {length.max(initial=0)} tokens "
                f"(at least {length.min(initial=0)}); this model reads {feature_dim} values a token, "
                f"{num_positions} tokens at most"
            )
        lengths.append(length)
        starts.append(np.cumsum(length) - length)
        owners.append(np.full(len(length), index, np.int64))
    owner, start, length = (np.concatenate(part) for part in (owners, starts, lengths))
    if len(owner) != len(texts):
        raise FlasharError(f"{len(texts)} captions have {len(owner)} features; encode again")
    return CaptionFeatures(texts, tuple(files), owner, start, length, num_positions, feature_dim)


@lru_cache(maxsize=256)
def _rows(path: Path) -> Any:
    """The features of one file, memory-mapped."""
    return safetensors.safe_open(path, framework="pt").get_slice(FEATURES)
