"""Seeded 64x64 images of ten shapes: the data of the embedded models.

Image ``index`` of ``seed`` depends on these two numbers alone, so that any range can be drawn in any order, anywhere.
Each image is one anti-aliased shape near the centre, in one colour on another; the background is plain or gets a little
darker towards the bottom.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "hexagon", "heart", "arrow")
NUM_CLASSES = len(CLASS_NAMES)
SIZE = 64
TRAINING_SEED = 0
DRAWING_VERSION = 1  # increased with every change of a drawn pixel
HELD_OUT_SEED = 1_000_003

PALETTE = {
    "white": (240, 240, 236),
    "navy": (30, 36, 78),
    "red": (216, 52, 50),
    "yellow": (248, 204, 64),
    "green": (34, 136, 84),
    "blue": (64, 132, 224),
}
MIN_COLOUR_DISTANCE = 180.0  # Euclidean in RGB: leaves out pairs such as white and yellow
RADIUS_RANGE = (0.27, 0.38)  # of the side
MAX_SHIFT = 0.04  # of the side, each way
MAX_TURN = 0.35  # radians, each way
SHADE = 0.22  # how much darker the bottom of a shaded background is than its top

Array = np.ndarray
Rgb = tuple[int, int, int]
Distance = Callable[[Array, Array], Array]


def draw(seed: int, index: int, label: int | None = None, size: int = SIZE) -> Array:
    """Image ``index`` of ``seed``: uint8 [size, size, 3].

    ``label`` in 0 .. 9 is the shape, by default ``index % 10``; colours, position and angle do not depend on it.
    """
    rng = np.random.default_rng([seed, index])
    label = index % NUM_CLASSES if label is None else label
    ground, ink = (PALETTE[name] for name in _NAMES[rng.integers(len(_NAMES))])
    shade = SHADE if rng.random() < 0.5 else 0.0
    return render(rng, label, ground, ink, shade, size)


def render(rng: np.random.Generator, label: int, ground: Rgb, ink: Rgb, shade: float = 0.0, size: int = SIZE) -> Array:
    """One image, uint8 [size, size, 3]: shape ``label`` of colour ``ink``, its radius, position and angle drawn from
    ``rng``. The bottom of the background is darker than its top by the share ``shade``.
    """
    radius = rng.uniform(*RADIUS_RANGE) * size
    shift_col, shift_row = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * size
    turn = rng.uniform(-MAX_TURN, MAX_TURN)

    centres = np.arange(size, dtype=np.float32) + 0.5 - size / 2
    right = (centres[None, :] - shift_col) / radius
    down = (centres[:, None] - shift_row) / radius
    cos, sin = math.cos(turn), math.sin(turn)
    distance = _DISTANCES[label](cos * right + sin * down, cos * down - sin * right)
    coverage = np.clip(0.5 - distance * radius, 0.0, 1.0)[..., None]  # [size, size, 1], one pixel of soft edge

    brightness = 1.0 - shade * np.linspace(0.0, 1.0, size)[:, None, None]
    background = brightness * np.array(ground, float)
    return np.round(background + coverage * (np.array(ink, float) - background)).astype(np.uint8)


def draw_batch(seed: int, start: int, count: int) -> tuple[Array, Array]:
    """Images start .. start+count-1 of ``seed``: uint8 [count, 64, 64, 3], and their labels, int64 [count]."""
    indices = range(start, start + count)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for row, index in enumerate(indices):
        images[row] = draw(seed, index)
    return images, np.arange(start, start + count, dtype=np.int64) % NUM_CLASSES


def colour_pairs() -> list[tuple[str, str]]:
    """(background, shape) names of every pair of colours far enough apart."""
    return [
        (ground, ink)
        for ground, ground_rgb in PALETTE.items()
        for ink, ink_rgb in PALETTE.items()
        if math.dist(ground_rgb, ink_rgb) >= MIN_COLOUR_DISTANCE
    ]


# Signed distances in units of the radius, negative inside; right and down are [size, size].


def _circle(right: Array, down: Array) -> Array:
    return np.hypot(right, down) - 1.0


def _ring(right: Array, down: Array) -> Array:
    return np.abs(np.hypot(right, down) - 0.77) - 0.23


def _crescent(right: Array, down: Array) -> Array:
    bite = 0.82 - np.hypot(right - 0.48, down)
    return np.maximum(np.hypot(right, down) - 1.0, bite)


def _heart(right: Array, down: Array) -> Array:
    """A square on its corner with a half disc on each upper side."""
    half = 0.92  # half the diagonal
    down = down - 0.08
    diamond = (np.abs(right) + np.abs(down) - half) / math.sqrt(2)
    lobe = np.hypot(np.abs(right) - half / 2, down + half / 2) - half / math.sqrt(2)
    return np.minimum(diamond, lobe)


def _polygon(*corners: tuple[float, float]) -> Distance:
    """Distance to a polygon given by (right, down) corners in order."""
    starts = np.array(corners, np.float32)
    edges = np.roll(starts, -1, axis=0) - starts

    def distance(right: Array, down: Array) -> Array:
        nearest = np.full(np.broadcast_shapes(right.shape, down.shape), np.inf, np.float32)
        inside = np.zeros(nearest.shape, bool)
        for (start_right, start_down), (edge_right, edge_down) in zip(starts, edges, strict=True):
            to_right, to_down = right - start_right, down - start_down
            along = (to_right * edge_right + to_down * edge_down) / (edge_right**2 + edge_down**2)
            along = np.clip(along, 0.0, 1.0)
            nearest = np.minimum(nearest, (to_right - along * edge_right) ** 2 + (to_down - along * edge_down) ** 2)
            # Even-odd rule: a ray to the right crosses this edge.
            if edge_down != 0:
                spans = (to_down >= 0) != (to_down >= edge_down)
                inside ^= spans & (to_right < to_down * (edge_right / edge_down))
        return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)

    return distance


def _regular(num_corners: int, radii: tuple[float, ...] = (1.0,)) -> Distance:
    """Corners at equal angles from the top, their radii taken in turn."""
    angles = [2 * math.pi * k / num_corners for k in range(num_corners)]
    return _polygon(*(
        (radii[k % len(radii)] * math.sin(angle), -radii[k % len(radii)] * math.cos(angle))
        for k, angle in enumerate(angles)
    ))  # fmt: skip


_ARM = 0.34
_DISTANCES: tuple[Distance, ...] = (
    _circle,
    _polygon((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    _regular(3, (1.1,)),
    _regular(10, (1.1, 0.48)),
    _polygon(
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
    _ring,
    _crescent,
    _regular(6),
    _heart,
    _polygon((-1, -0.3), (0.1, -0.3), (0.1, -0.85), (1.1, 0), (0.1, 0.85), (0.1, 0.3), (-1, 0.3)),
)  # fmt: skip
_NAMES = colour_pairs()
