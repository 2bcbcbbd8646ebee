"""Drawn shapes: pictures that need no files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.bounds import IMAGES, decimal
from flashar_cli.data.shapes import CLASS_NAMES, DRAWING_VERSION, TRAINING_SEED, draw
from flashar_cli.data.sources.base import Fetch
from flashar_cli.errors import FlasharError
from flashar_cli.machine import require_memory
from flashar_cli.text import shown

SHAPES = "shapes"
DEFAULT_SHAPES = 20_000
BYTES_PER_SHAPE = 250  # of the list of ids and labels while it is made


class DrawnShapes:
    """The first ``num_images`` drawn shapes of a seed."""

    def __init__(self, num_images: int = DEFAULT_SHAPES, seed: int = TRAINING_SEED) -> None:
        self.seed = seed
        self.ids = np.array([f"shapes-{seed}-{index:08d}" for index in range(num_images)])
        self.labels = np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES)
        self.captions = None
        self.fingerprint = f"shapes-{DRAWING_VERSION}-{seed}"

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Drawn when fetched."""
        for row in rows.tolist():
            yield partial(_drawn, self.seed, row)


def parse_shapes(data: str) -> DrawnShapes:
    """``shapes`` or ``shapes:N``. Raises FlasharError for another N."""
    count = data.partition(":")[2]
    number = decimal(count) if count else DEFAULT_SHAPES
    if number is None:
        raise FlasharError(f"--data {data}: {shown(count)} is not a number of pictures; expected e.g. shapes:2000")
    IMAGES.check("the number of --data shapes", number)
    require_memory(f"--data {data}", number * BYTES_PER_SHAPE)
    return DrawnShapes(number)


def _drawn(seed: int, row: int) -> Image.Image:
    return Image.fromarray(draw(seed, row))
