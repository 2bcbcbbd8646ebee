"""Drawn shapes: images that need no files, with classes or, in named colours, with captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.data.captioned_shapes import CAPTIONED_VERSION, describe, draw_captioned
from flashar_cli.data.shapes import CLASS_NAMES, DRAWING_VERSION, TRAINING_SEED, draw
from flashar_cli.data.sources.base import Fetch, ImageSource, Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import IMAGES, decimal
from flashar_cli.inputs.text import shown
from flashar_cli.machine.memory import require_memory

SHAPES = "shapes"
DEFAULT_SHAPES = 20_000
BYTES_PER_SHAPE = 350  # of an id and a label or caption while the lists are made


class DrawnShapes(ImageSource):
    """The first ``num_images`` drawn shapes of the training seed, with classes or with captions. The two are different
    images.
    """

    def __init__(self, num_images: int, captions: bool) -> None:
        name, version = (f"captioned-{SHAPES}", CAPTIONED_VERSION) if captions else (SHAPES, DRAWING_VERSION)
        self.ids = np.array([f"{name}-{TRAINING_SEED}-{index:08d}" for index in range(num_images)])
        self.labels = None if captions else np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES)
        self.captions = [describe(TRAINING_SEED, index)[1] for index in range(num_images)] if captions else None
        self.fingerprint = f"{name}-{version}-{TRAINING_SEED}"
        self._draw = draw_captioned if captions else draw

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Drawn when fetched."""
        for row in rows.tolist():
            yield partial(_image, self._draw, row)


def parse_shapes(data: str, wanted: Wanted) -> DrawnShapes:
    """``shapes`` or ``shapes:N``. Raises FlasharError for another N."""
    count = data.partition(":")[2]
    number = decimal(count) if count else DEFAULT_SHAPES
    if number is None:
        raise FlasharError(f"--data {data}: {shown(count)} is not a number of images; expected e.g. shapes:2000")
    IMAGES.check("the number of --data shapes", number)
    require_memory(f"--data {data}", number * BYTES_PER_SHAPE)
    return DrawnShapes(number, wanted.captions)


def _image(drawn: Callable[[int, int], NDArray[np.uint8]], row: int) -> Image.Image:
    return Image.fromarray(drawn(TRAINING_SEED, row))
