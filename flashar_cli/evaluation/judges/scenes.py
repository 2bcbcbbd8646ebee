"""Judges images of prompts about the drawn shapes: does an image show the shape and the two colours it was asked for?

Letters: B images, K colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.config import ModelConfig, TextPrefix
from flashar_cli.data.captioned_shapes import COLOURS, GROUNDS, INKS, PHRASES, Scene, describe
from flashar_cli.data.conditions import Given
from flashar_cli.data.shapes import CLASS_NAMES, HELD_OUT_SEED, PALETTE, SIZE
from flashar_cli.data.sources.shapes import HELD_OUT_SHAPES
from flashar_cli.evaluation.judges.base import Figure, Images, Judge
from flashar_cli.evaluation.shape_classifier import ShapeClassifier, load_classifier
from flashar_cli.tokenizers.pixels import from_uint8

BORDER = 3  # pixels at each side, which no shape reaches
LEAST_INK = 40  # pixels; the smallest shape has several times as many
CLASSIFIED = ("white", "navy")  # background and shape, as the classifier sees every image
PARTS = ("shape", "ink", "ground")
APART = 50.0  # in RGB, half of what any two colours are apart: beyond it a pixel is no background


class ScenesJudge(Judge):
    """Shares of images with the right shape, the right colours, and all of them."""

    name = "the shape classifier and the colours"
    data = HELD_OUT_SHAPES
    side, num_images = SIZE, 2000

    def obstacle(self, config: ModelConfig) -> str | None:
        if isinstance(config.prefix, TextPrefix) and config.order_grid.height * config.pixels_per_token == SIZE:
            return None
        return f"prompts about drawn shapes are for models that read text and make images of {SIZE} pixels"

    def asked(self, config: ModelConfig, num_images: int) -> Given:
        return Given(prompts=scenes(num_images)[1])

    def figures(self, images: Images, config: ModelConfig) -> list[Figure]:
        classifier = load_classifier()
        found = [scene for batch in images for scene in see(classifier, batch)]
        verdict = compare(found, scenes(len(found))[0])
        shares = {"all_right": verdict.all, "shape": verdict.shape, "ink": verdict.ink, "ground": verdict.ground}
        return [
            Figure(name, share, float(np.sqrt(share * (1 - share) / len(found))), "higher")
            for name, share in shares.items()
        ]


def scenes(count: int) -> tuple[list[Scene], list[str]]:
    """Held-out scenes, shapes in turn, and prompts that name both colours, in four lengths."""
    found = [describe(HELD_OUT_SEED, index)[0] for index in range(count)]
    phrases = [phrase for phrase in PHRASES if "{ground}" in phrase]
    return found, [scene.caption(phrases[index // 10 % len(phrases)]) for index, scene in enumerate(found)]


@dataclass(frozen=True)
class Verdict:
    """Shares of the images with the right shape, with the right colour of the shape, of the background, and with all
    three right.
    """

    num_images: int
    shape: float
    ink: float
    ground: float
    all: float


def judge(classifier: ShapeClassifier, images: NDArray[np.uint8], wanted: Sequence[Scene]) -> Verdict:
    """Judges uint8 images [B, 64, 64, 3] against what was asked for."""
    return compare(see(classifier, images), wanted)


def compare(found: Sequence[Scene], wanted: Sequence[Scene]) -> Verdict:
    """The shares of B scenes that are as wanted, part by part."""
    right = np.array(
        [
            [getattr(one, part) == getattr(other, part) for part in PARTS]
            for one, other in zip(found, wanted, strict=True)
        ]
    )
    shares = dict(zip(PARTS, right.mean(axis=0).tolist(), strict=True))
    return Verdict(len(right), **shares, all=float(right.all(axis=1).mean()))


def see(classifier: ShapeClassifier, images: NDArray[np.uint8]) -> list[Scene]:
    """What uint8 images [B, 64, 64, 3] show; an image of its background alone has the colour of its ink too."""
    pairs = [_colours(image.astype(np.float64)) for image in images]
    redrawn = from_uint8(np.stack([_redrawn(image, *pair) for image, pair in zip(images, pairs, strict=True)]))
    labels = torch.cat([classifier.classify(part) for part in redrawn.split(100)])
    return [Scene(CLASS_NAMES[label], *pair) for label, pair in zip(labels.tolist(), pairs, strict=True)]


def _redrawn(image: NDArray[np.uint8], ink: str, ground: str) -> NDArray[np.uint8]:
    """The image [64, 64, 3] in two colours that the shape classifier was trained on: each pixel keeps its place between
    background and ink.
    """
    start, end = np.array(COLOURS[ground], float), np.array(COLOURS[ink], float)
    axis = (end - start) / max(1.0, float((end - start) @ (end - start)))
    coverage = np.clip((image - start) @ axis, 0.0, 1.0)[..., None]
    known, drawn = (np.array(PALETTE[name], float) for name in CLASSIFIED)
    return np.round(known + coverage * (drawn - known)).astype(np.uint8)


def _colours(image: NDArray[np.float64]) -> tuple[str, str]:
    """The colours of shape and background of [64, 64, 3]. The border votes for the background; what differs from the
    background votes for the shape, so that the mixed colours of its edge are outvoted.
    """
    edge = np.ones(image.shape[:2], bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    ground = _vote(image[edge], GROUNDS)
    inside = image[np.linalg.norm(image - np.array(COLOURS[ground]), axis=-1) > APART]
    if len(inside) < LEAST_INK:
        return ground, ground
    return _vote(inside, [ink for ink in INKS if ink != ground]), ground


def _vote(pixels: NDArray[np.float64], names: Sequence[str]) -> str:
    """Of these colours the one that most pixels [P, 3] are nearest to, in RGB."""
    distances = np.linalg.norm(pixels[:, None] - np.array([COLOURS[name] for name in names]), axis=-1)  # [P, K]
    return names[int(np.bincount(distances.argmin(axis=1), minlength=len(names)).argmax())]
