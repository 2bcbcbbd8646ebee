"""Every kind of image becomes RGB or raises the same kind of error."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from flashar_cli.data.decode import BadImage, decode
from tests.data.images import bad_kinds, encoded, good_kinds, quarters


@pytest.mark.parametrize("name", sorted(good_kinds()))
def test_unusual_images(name):
    image = decode(good_kinds()[name])
    assert image.mode == "RGB" and image.size == (32, 32)
    expected = quarters()
    if name == "turned.jpg":  # as in a viewer: the left column is on top
        expected = expected.rotate(-90)
    if name == "sixteen.png":
        expected = expected.convert("L").convert("RGB")
    if name == "cmyk.jpg":
        assert np.asarray(image)[4, 4].argmax() == 0 and np.asarray(image)[28, 4].argmax() == 2
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int))
    assert np.median(difference) <= 6, name


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 257, 32_768, 65_535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.asarray(decode(encoded(Image.fromarray(values), kind)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    thirty_two = Image.fromarray(np.array([[0, 70_000]], np.int32))
    with pytest.raises(BadImage, match="beyond 16 bits"):
        decode(thirty_two)
    with pytest.raises(BadImage, match="floating-point"):
        decode(Image.fromarray(np.array([[0.5]], np.float32)))


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(decode(encoded(image))).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize("name", sorted(bad_kinds()))
def test_what_cannot_be_read_says_why_in_the_same_words(name):
    reasons = []
    for _ in range(2):
        with pytest.raises(BadImage) as caught:
            decode(bad_kinds()[name])
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1] and "0x" not in reasons[0] and reasons[0]


def test_random_damage_is_always_the_same_error():
    rng = np.random.default_rng(0)
    for name, content in good_kinds().items():
        for _ in range(20):
            damaged = bytearray(content)
            for place in rng.integers(0, len(damaged), 8):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(BadImage):
                assert decode(bytes(damaged)).mode == "RGB", name


def test_an_open_image_passes():
    assert decode(Image.open(io.BytesIO(encoded(quarters())))).getpixel((0, 0)) == (255, 0, 0)
