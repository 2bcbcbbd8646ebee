"""Captioned drawings show what their captions say."""

from __future__ import annotations

import itertools
import math

import numpy as np

from flashar_cli.data import captioned_shapes as captioned
from flashar_cli.data.shapes import CLASS_NAMES


def test_the_colours_of_a_caption_are_those_of_the_pixels():
    for index in range(60):
        scene, caption = captioned.describe(7, index)
        pixels = captioned.draw_captioned(7, index)
        assert pixels.dtype == np.uint8 and pixels.shape == (64, 64, 3)
        ground = (pixels == np.array(captioned.COLOURS[scene.ground])).all(axis=-1)
        ink = (pixels == np.array(captioned.COLOURS[scene.ink])).all(axis=-1)
        assert ground[[0, 0, -1, -1], [0, -1, 0, -1]].all() and ink.sum() > 40
        assert (~ground & ~ink).mean() < 0.15  # the soft edge
        words = caption.split()
        assert next(word for word in words if word in captioned.INKS) == scene.ink
        assert scene.shape == CLASS_NAMES[index % 10] and scene.shape in words
        assert " on " not in caption or scene.ground in words[words.index("on") :]


def test_a_scene_depends_on_seed_and_index_alone():
    images, scenes = captioned.draw_captioned_batch(3, 20, 8)
    again, same = captioned.draw_captioned_batch(3, 24, 2)
    assert np.array_equal(again, images[4:6]) and same == scenes[4:6]
    assert len(np.unique(images.reshape(8, -1), axis=0)) == 8
    assert captioned.describe(4, 20)[0] != scenes[0] or captioned.describe(4, 21)[0] != scenes[1]


def test_every_pair_of_colours_every_phrase_and_every_shape_comes():
    drawn = [captioned.describe(0, index) for index in range(2000)]
    assert {(scene.ink, scene.ground) for scene, _ in drawn} == set(captioned.PAIRS)
    assert len(captioned.PAIRS) == 46 and all(ink != ground for ink, ground in captioned.PAIRS)
    assert {len(caption.split()) for _, caption in drawn} == {2, 3, 4, 5, 7, 10}
    assert len({scene.shape for scene, _ in drawn}) == 10


def test_captions_in_full():
    scene = captioned.Scene("star", "orange", "gray")
    assert [scene.caption(phrase) for phrase in captioned.PHRASES] == [
        "orange star",
        "an orange star",
        "orange star on gray",
        "an orange star on gray",
        "an orange star on a gray background",
        "a drawing of an orange star on a gray background",
    ]
    assert captioned.Scene("ring", "red", "white").caption(captioned.PHRASES[1]) == "a red ring"


def test_colours_can_be_told_apart():
    for one, other in itertools.combinations(captioned.COLOURS.values(), 2):
        assert math.dist(one, other) >= 100
    assert set(captioned.COLOURS) == {*captioned.INKS, *captioned.GROUNDS}
