from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flashar_cli.data.augment import Augmentation, center_crop
from flashar_cli.errors import FlasharError
from tests.data.images import quarters


@pytest.mark.parametrize("size", ((64, 64), (100, 300), (301, 97), (40, 40), (64, 65)))
def test_center_crop_keeps_the_middle(size):
    image = Image.new("RGB", size, (255, 0, 0))
    middle = Image.new("RGB", (4, 4), (0, 0, 255))
    image.paste(middle, (size[0] // 2 - 2, size[1] // 2 - 2))
    cropped = center_crop(image, 64, 64)
    assert cropped.shape == (64, 64, 3)
    assert cropped[30:34, 30:34, 2].mean() > 60
    assert cropped[:8, :, 2].mean() < 5


@pytest.mark.parametrize(("height", "width"), ((20, 20), (20, 10), (10, 20)))
def test_views(height, width):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8))
    plain = Augmentation("center").views(noise, height, width)
    assert plain.shape == (1, height, width, 3) and np.array_equal(plain[0], center_crop(noise, height, width))
    flipped = Augmentation("center-flip").views(noise, height, width)
    assert np.array_equal(flipped[0], plain[0]) and np.array_equal(flipped[1], plain[0][:, ::-1])
    ten = Augmentation("ten-crop", 1.5).views(noise, height, width)
    large = center_crop(noise, int(height * 1.5), int(width * 1.5))
    down, right = large.shape[0] - height, large.shape[1] - width
    assert ten.shape == (10, height, width, 3)
    assert np.array_equal(ten[0], large[down // 2 :, right // 2 :][:height, :width])
    for view, part in ((1, large[:height, :width]), (2, large[:height, right:]), (3, large[down:, :width])):
        assert np.array_equal(ten[view], part)
    assert np.array_equal(ten[4], large[down:, right:])
    assert np.array_equal(ten[5:], ten[:5, :, ::-1])


def test_the_published_ratio():
    assert Augmentation("ten-crop").views(quarters(300, 300), 256, 256).shape == (10, 256, 256, 3)
    assert Augmentation("ten-crop").describe() == {"name": "ten-crop", "crop_ratio": 1.1, "views": 10}
    assert Augmentation("center", 2.0).describe() == {"name": "center", "views": 1}
    for bad in (("nine-crop", 1.1), ("ten-crop", 0.9)):
        with pytest.raises(FlasharError, match="expected"):
            Augmentation(*bad)
