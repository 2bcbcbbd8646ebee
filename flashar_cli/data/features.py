"""Caption features on disk: the valid tokens of each caption, one safetensors file a shard, read when they are needed.

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

from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions

FEATURES, LENGTHS = "features", "lengths"


@dataclass(frozen=True)
class CaptionFeatures:
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

    def __len__(self) -> int:
        return len(self.file)

    def take(self, rows: NDArray[np.integer] | slice) -> CaptionFeatures:
        """The captions of these rows, in their order."""
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
    """A file of the valid tokens of right-padded captions: ``features`` bfloat16 [total, F], ``lengths`` int32 [B]."""
    valid = features_BPF.to(torch.bfloat16)[mask_BP > 0].contiguous()
    return safetensors.torch.save({FEATURES: valid, LENGTHS: mask_BP.sum(dim=1).to(torch.int32)})


def open_features(
    files: list[Path], texts: NDArray[np.object_], num_positions: int, feature_dim: int
) -> CaptionFeatures:
    """The captions of some files, in order. Raises FlasharError where they don't fit."""
    lengths, owners, starts = [], [], []
    for index, path in enumerate(files):
        try:
            with safetensors.safe_open(path, framework="numpy") as tensors:
                length = tensors.get_tensor(LENGTHS).astype(np.int64)
                shape = tensors.get_slice(FEATURES).get_shape()
        except (OSError, safetensors.SafetensorError) as error:
            raise FlasharError(f"{path} cannot be read as caption features ({error}); encode again") from None
        if shape != [int(length.sum()), feature_dim] or length.max(initial=0) > num_positions:
            raise FlasharError(
                f"{path} holds features {shape} of captions with up to {length.max(initial=0)} tokens; "
                f"this model reads {feature_dim} values a token, {num_positions} tokens at most"
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
    """The features of one file, mapped and not read."""
    return safetensors.safe_open(path, framework="pt").get_slice(FEATURES)
