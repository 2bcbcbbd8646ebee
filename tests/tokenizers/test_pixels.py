"""Images as bytes and as numbers, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.pixels import from_uint8, psnr_db, to_uint8


def test_every_byte_comes_back_and_ends_are_minus_one_and_one():
    stored = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 8, 16, 3)
    images = from_uint8(stored)
    assert images.shape == (2, 3, 8, 16) and images.dtype == torch.float32
    assert float(images[0, 0, 0, 0]) == -1.0 and float(images[-1, 2, -1, -1]) == 1.0
    torch.testing.assert_close(images[1, 1, 0, 0], torch.tensor(128 / 127.5 - 1))
    assert np.array_equal(to_uint8(images), stored)


def test_channels_go_first_and_rows_stay_rows():
    stored = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 3), dtype=np.uint8)
    images = from_uint8(stored)
    for row, col, channel in np.ndindex(2, 3, 3):
        assert float(images[0, channel, row, col]) == pytest.approx(stored[0, row, col, channel] / 127.5 - 1, abs=1e-6)


def test_values_are_rounded_and_clamped():
    values = torch.tensor([-3.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 2.0]).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 100, 101, 255]


def test_psnr_by_hand():
    reference = torch.zeros(1, 3, 2, 2)
    assert psnr_db(reference + 0.02, reference) == pytest.approx(10 * math.log10(4 / 0.0004), rel=1e-5)
    assert psnr_db(reference + 5, reference + 1) == math.inf


@pytest.mark.parametrize("shape", ((2, 2, 3), (1, 2, 2, 4)))
def test_other_shapes_and_types_are_refused(shape):
    with pytest.raises(FlasharError, match="expected uint8"):
        from_uint8(np.zeros(shape, np.uint8))
    with pytest.raises(FlasharError, match="images are float32"):
        from_uint8(np.zeros((1, 2, 2, 3), np.float32))
