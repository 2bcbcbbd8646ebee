"""Judges text-to-image models on the drawn shapes: does an image show the shape and the two colours it was asked for?

Letters: B images, K colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.data.captioned_shapes import COLOURS, GROUNDS, INKS, Scene
from flashar_cli.data.shapes import CLASS_NAMES, PALETTE
from flashar_cli.tokenizers.pixels import from_uint8
from scripts.tiny.shape_classifier import ShapeClassifier

BORDER = 3  # pixels at each side, which no shape reaches
LEAST_INK = 40  # pixels; the smallest shape has several times as many
CLASSIFIED = ("white", "navy")  # background and shape, as the classifier sees every image
PARTS = ("shape", "ink", "ground")
APART = 50.0  # in RGB, half of what any two colours are apart: beyond it a pixel is no background


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
