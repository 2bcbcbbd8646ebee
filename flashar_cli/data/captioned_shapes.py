"""The drawn shapes with captions: 64x64 images of one shape in a named colour on a plain background of another.

Scene ``index`` of ``seed`` depends on these two numbers alone, as in ``shapes``, whose geometry it shares; its colours
have names that a reader of the caption can tell apart. Captions have several lengths, and the shortest leave the
background open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashar_cli.data.shapes import CLASS_NAMES, NUM_CLASSES, Array, Rgb, render

CAPTIONED_VERSION = 1  # increased with every change of a drawn pixel or of a caption

# Any two colours are at least 100 apart, Euclidean in RGB.
COLOURS: dict[str, Rgb] = {
    "red": (205, 30, 45),
    "orange": (240, 125, 20),
    "yellow": (252, 225, 70),
    "green": (30, 140, 60),
    "blue": (40, 90, 215),
    "purple": (130, 40, 150),
    "white": (245, 245, 240),
    "black": (20, 20, 24),
    "gray": (140, 140, 140),
    "pink": (245, 150, 185),
    "cyan": (110, 210, 225),
    "brown": (105, 70, 45),
}
INKS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
GROUNDS = ("white", "black", "gray", "pink", "cyan", "brown")
PAIRS = tuple((ink, ground) for ink in INKS for ground in GROUNDS if ink != ground)
PHRASES = (
    "{ink} {shape}",
    "{a} {ink} {shape}",
    "{ink} {shape} on {ground}",
    "{a} {ink} {shape} on {ground}",
    "{a} {ink} {shape} on a {ground} background",
    "a drawing of {a} {ink} {shape} on a {ground} background",
)


@dataclass(frozen=True)
class Scene:
    """What an image shows: a shape of ``shapes.CLASS_NAMES`` in colour ``ink`` on colour ``ground``."""

    shape: str
    ink: str
    ground: str

    def caption(self, phrase: str) -> str:
        """One of ``PHRASES`` about this scene."""
        article = "an" if self.ink[0] in "aeiou" else "a"
        return phrase.format(a=article, ink=self.ink, shape=self.shape, ground=self.ground)


def describe(seed: int, index: int) -> tuple[Scene, str]:
    """Scene ``index`` of ``seed`` and its caption. Shapes come in turn; colours and phrase are random."""
    return _described(_generator(seed, index), index)


def draw_captioned(seed: int, index: int) -> Array:
    """The image of ``describe(seed, index)``, uint8 [64, 64, 3]."""
    rng = _generator(seed, index)
    scene, _ = _described(rng, index)
    return render(rng, CLASS_NAMES.index(scene.shape), COLOURS[scene.ground], COLOURS[scene.ink])


def draw_captioned_batch(seed: int, start: int, count: int) -> tuple[Array, list[Scene]]:
    """Images start .. start+count-1 of ``seed``: uint8 [count, 64, 64, 3], and what they show."""
    indices = range(start, start + count)
    return np.stack([draw_captioned(seed, index) for index in indices]), [describe(seed, index)[0] for index in indices]


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _described(rng: np.random.Generator, index: int) -> tuple[Scene, str]:
    ink, ground = PAIRS[rng.integers(len(PAIRS))]
    scene = Scene(CLASS_NAMES[index % NUM_CLASSES], ink, ground)
    return scene, scene.caption(PHRASES[rng.integers(len(PHRASES))])
