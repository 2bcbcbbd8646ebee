"""Drawn shapes: images that need no files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.data.shapes import CLASS_NAMES, DRAWING_VERSION, TRAINING_SEED, describe, draw
from flashar_cli.data.sources.base import Fetch, ImageSource, Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import IMAGES, decimal
from flashar_cli.inputs.text import shown
from flashar_cli.machine.memory import require_memory

SHAPES = "shapes"
DEFAULT_SHAPES = 20_000
BYTES_PER_SHAPE = 250  # of an id and a label while the lists are made


class DrawnShapes(ImageSource):
    """The first ``num_images`` drawn shapes of a seed, with classes or captions."""

    def __init__(self, num_images: int, captions: bool) -> None:
        self.ids = np.array([f"shapes-{TRAINING_SEED}-{index:08d}" for index in range(num_images)])
        self.labels = None if captions else np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES)
        self.captions = [describe(TRAINING_SEED, index) for index in range(num_images)] if captions else None
        self.fingerprint = f"shapes-{DRAWING_VERSION}-{TRAINING_SEED}"

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Drawn when fetched."""
        for row in rows.tolist():
            yield partial(_drawn, row)


def parse_shapes(data: str, wanted: Wanted) -> DrawnShapes:
    """``shapes`` or ``shapes:N``. Raises FlasharError for another N."""
    count = data.partition(":")[2]
    number = decimal(count) if count else DEFAULT_SHAPES
    if number is None:
        raise FlasharError(f"--data {data}: {shown(count)} is not a number of images; expected e.g. shapes:2000")
    IMAGES.check("the number of --data shapes", number)
    require_memory(f"--data {data}", number * BYTES_PER_SHAPE)
    return DrawnShapes(number, wanted.captions)


def _drawn(row: int) -> Image.Image:
    return Image.fromarray(draw(TRAINING_SEED, row))
