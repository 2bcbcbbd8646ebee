"""Drawn shapes: images that need no files, with classes or, in named colours, with captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.data.captioned_shapes import CAPTIONED_VERSION, describe, draw_captioned
from flashar_cli.data.shapes import CLASS_NAMES, DRAWING_VERSION, HELD_OUT_SEED, TRAINING_SEED, draw
from flashar_cli.data.sources.base import Fetch, ImageSource, Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import IMAGES, decimal
from flashar_cli.inputs.text import shown
from flashar_cli.machine.memory import require_memory

SHAPES = "shapes"
HELD_OUT_SHAPES = "held-out-shapes"
SEEDS = {SHAPES: TRAINING_SEED, HELD_OUT_SHAPES: HELD_OUT_SEED}
DEFAULT_SHAPES = 20_000
BYTES_PER_SHAPE = 350  # of an id and a label or caption while the lists are made


class DrawnShapes(ImageSource):
    """The first ``num_images`` drawn shapes of a seed, with classes or with captions. The two are different images."""

    def __init__(self, num_images: int, captions: bool, seed: int = TRAINING_SEED) -> None:
        name, version = (f"captioned-{SHAPES}", CAPTIONED_VERSION) if captions else (SHAPES, DRAWING_VERSION)
        self.ids = np.array([f"{name}-{seed}-{index:08d}" for index in range(num_images)])
        self.labels = None if captions else np.arange(num_images, dtype=np.int64) % len(CLASS_NAMES)
        self.captions = [describe(seed, index)[1] for index in range(num_images)] if captions else None
        self.fingerprint = f"{name}-{version}-{seed}"
        self._draw = partial(draw_captioned if captions else draw, seed)

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Drawn when fetched."""
        for row in rows.tolist():
            yield partial(_image, self._draw, row)


def parse_shapes(data: str, wanted: Wanted) -> DrawnShapes:
    """``shapes``, ``held-out-shapes``, or ``shapes:N``. Raises FlasharError for another N."""
    name, _, count = data.partition(":")
    number = decimal(count) if count else DEFAULT_SHAPES
    if number is None:
        raise FlasharError(f"--data {data}: {shown(count)} is not a number of images; expected e.g. shapes:2000")
    IMAGES.check("the number of --data shapes", number)
    require_memory(f"--data {data}", number * BYTES_PER_SHAPE)
    return DrawnShapes(number, wanted.captions, SEEDS[name])


def _image(drawn: Callable[[int], NDArray[np.uint8]], row: int) -> Image.Image:
    return Image.fromarray(drawn(row))
