"""The judge is right about drawings, also after losses as a tokenizer's, and refuses what was not asked for."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flashar_cli.data.captioned_shapes import draw_captioned_batch
from flashar_cli.data.shapes import HELD_OUT_SEED
from flashar_cli.evaluation.judges.scenes import compare, judge, see
from flashar_cli.evaluation.shape_classifier import load_classifier

COUNT = 100
IMAGES, SCENES = draw_captioned_batch(HELD_OUT_SEED, 0, COUNT)


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(buffer)


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.5))


@pytest.mark.parametrize(("worse", "least"), ((None, 0.99), (jpeg, 0.97), (blur, 0.97)))
def test_drawings_are_what_they_were_drawn_as(worse, least):
    images = IMAGES if worse is None else np.stack([np.asarray(worse(Image.fromarray(image))) for image in IMAGES])
    verdict = judge(load_classifier(), images, SCENES)
    assert verdict.num_images == COUNT and verdict.ink == verdict.ground == 1.0
    assert verdict.shape >= least and verdict.all == verdict.shape


def test_what_was_not_asked_for_is_wrong():
    found = see(load_classifier(), IMAGES)
    others = [replace(scene, shape="ring" if scene.shape != "ring" else "star") for scene in SCENES]
    assert compare(found, others).shape < 0.02
    swapped = [replace(scene, ink=scene.ground, ground=scene.ink) for scene in SCENES]
    verdict = compare(found, swapped)
    assert verdict.ink == verdict.ground == verdict.all == 0 and verdict.shape > 0.98
    half = [scene if k % 2 else replace(scene, ink="none") for k, scene in enumerate(SCENES)]
    verdict = compare(found, half)
    assert verdict.ink == 0.5 and verdict.ground == 1 and 0.48 < verdict.all <= 0.5


def test_an_empty_image_has_no_right_ink():
    empty = np.broadcast_to(np.array([245, 245, 240], np.uint8), (1, 64, 64, 3))
    found = see(load_classifier(), empty)[0]
    assert found.ground == found.ink == "white"
