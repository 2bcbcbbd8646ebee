"""The reference of generated images in the layout of ADM's evaluator: moments of the features of a training set.

Source: openai/guided-diffusion evaluations/README.md and evaluator.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.inception import POOL_FEATURES, SPATIAL_FEATURES
from flashar_cli.evaluation.moments import Moments
from flashar_cli.files.arrays import NpzArray, npz_names

MOMENTS = ("mu", "sigma", "mu_s", "sigma_s")
IMAGES = "arr_0"
NUM_ROWS = 1_281_167  # images of ImageNet's training set; the file does not say how many there were


@dataclass(frozen=True)
class Reference:
    """Moments of the pooled and of the spatial features of the training set, and some real images, for precision and
    recall.
    """

    pool: Moments
    spatial: Moments
    images: NpzArray


def read_reference(path: Path) -> Reference:
    """Reads ``VIRTUAL_imagenet256_labeled.npz`` or another file of that layout. Raises FlasharError for another file,
    and for one without moments: that is what images are compared with that a tokenizer has reconstructed.
    """
    where = f"--reference {path}"
    missing = [name for name in (IMAGES, *MOMENTS) if name not in npz_names(path, where)]
    if missing == list(MOMENTS):
        raise FlasharError(
            f"{where} holds images alone, as references of reconstructions do; expected one of generation with "
            f"{', '.join(MOMENTS)} of the whole training set, such as VIRTUAL_imagenet256_labeled.npz"
        )
    if missing:
        raise FlasharError(f"{where} lacks {', '.join(missing)}; expected a reference batch of ADM's evaluator")
    images = NpzArray(path, IMAGES, where)
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[-1] != 3:
        raise FlasharError(f"{where} holds {IMAGES} of {images.dtype} {images.shape}; expected uint8 [N, h, w, 3]")
    return Reference(
        pool=_moments(path, "mu", "sigma", POOL_FEATURES, where),
        spatial=_moments(path, "mu_s", "sigma_s", SPATIAL_FEATURES, where),
        images=images,
    )


def _moments(path: Path, mean: str, covariance: str, dims: int, where: str) -> Moments:
    arrays = [NpzArray(path, name, where) for name in (mean, covariance)]
    for array, shape in zip(arrays, ((dims,), (dims, dims)), strict=True):
        if array.shape != shape or array.dtype.kind != "f":
            raise FlasharError(f"{where} holds {array.name} of {array.dtype} {array.shape}; expected floats {shape}")
    known, spread = (array.whole() for array in arrays)
    if not (np.isfinite(known).all() and np.isfinite(spread).all()):
        raise FlasharError(f"{where} holds {mean} or {covariance} with values that are not finite")
    return Moments.of_covariance(NUM_ROWS, known, spread)
