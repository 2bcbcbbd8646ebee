"""How the content of a source becomes tokens: images through a tokenizer, stored token grids as they are.

Letters: n images, A views, H grid rows, W grid columns; h, w pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.data.augment import CENTER, Augmentation
from flashar_cli.data.decode import decode
from flashar_cli.data.token_grids import read_token_grid
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import ImageTokenizer
from flashar_cli.tokenizers.pixels import from_uint8


class Encoder(ABC):
    """Makes tokens in 0 .. ``vocab_size`` - 1 of a ``grid``, for each of ``num_views`` views of an image. ``noun`` is
    what the source holds.
    """

    noun: str
    grid: Grid
    num_views: int
    vocab_size: int

    @abstractmethod
    def prepare(self, raw: Any) -> NDArray:
        """What a source fetched, read and cut, [A, ..]; threads call it. Raises FlasharError where it can't be read."""

    @abstractmethod
    def tokens(self, prepared: NDArray) -> NDArray[np.int32]:
        """Tokens [n, A, H, W] of prepared content [n, A, ..]."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the tokens, by its name in ``EncodeSettings``."""


class ImageEncoder(Encoder):
    """Images through a tokenizer that runs in ``dtype``, at most ``batch_size`` views a forward."""

    noun = "an image"

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        grid: Grid,
        augmentation: Augmentation = CENTER,
        batch_size: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tokenizer, self.grid, self.augmentation = tokenizer, grid, augmentation
        self.batch_size, self.dtype = batch_size, dtype
        self.num_views, self.vocab_size = augmentation.num_views, tokenizer.config.codebook_size

    def prepare(self, raw: bytes | Image.Image) -> NDArray[np.uint8]:
        """uint8 [A, h, w, 3]."""
        height, width = (side * self.tokenizer.config.downsample for side in (self.grid.height, self.grid.width))
        return self.augmentation.views(decode(raw), height, width)

    @torch.inference_mode()
    def tokens(self, prepared: NDArray[np.uint8]) -> NDArray[np.int32]:
        tokens, flat = [], prepared.reshape(-1, *prepared.shape[2:])
        for start in range(0, len(flat), self.batch_size):
            images = from_uint8(flat[start : start + self.batch_size]).to(self.tokenizer.device)
            tokens.append(self.tokenizer.encode(images, self.dtype).to(torch.int32).cpu().numpy())
        return np.concatenate(tokens).reshape(*prepared.shape[:2], self.grid.height, self.grid.width)

    def settings(self) -> dict[str, Any]:
        return {
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "augmentation": self.augmentation.describe(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


class StoredTokens(Encoder):
    """Token grids that another program made; nothing says with which tokenizer, nor of which views."""

    noun, num_views = "a grid of tokens", 1

    def __init__(self, grid: Grid, vocab_size: int) -> None:
        self.grid, self.vocab_size = grid, vocab_size

    def prepare(self, raw: bytes) -> NDArray[np.int32]:
        """int32 [1, H, W]."""
        return read_token_grid(raw, self.grid, self.vocab_size)[None]

    def tokens(self, prepared: NDArray[np.int32]) -> NDArray[np.int32]:
        return prepared

    def settings(self) -> dict[str, Any]:
        return {"tokenizer_sha256": None, "augmentation": {"name": "none", "views": 1}, "dtype": None}


def tokenizer_sha256(tokenizer: ImageTokenizer) -> str:
    """SHA-256 of a tokenizer's weights in float32, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
