"""Sheets are cut into the images that they were made of, and samples don't depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashar_cli.adaptation.samples import draw_samples, read_sheet, subjects, write_sheet
from flashar_cli.data.conditions.by_class import Labels
from flashar_cli.data.tokens import TokenSet
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.tiny_models import TINY_VQ, build_model, random_config


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
def test_a_sheet_is_cut_into_its_images(tmp_path, height: int, width: int) -> None:
    config = random_config(height, width)
    side = TINY_VQ.downsample
    images = np.random.default_rng(0).integers(0, 256, (23, side * height, side * width, 3), np.uint8)
    write_sheet(tmp_path / "sheet.png", images, {})
    np.testing.assert_array_equal(read_sheet(tmp_path / "sheet.png", config, 12), images[:12])
    np.testing.assert_array_equal(read_sheet(tmp_path / "sheet.png", config, 23), images)


def test_the_first_images_are_the_same_in_a_larger_sheet() -> None:
    torch.manual_seed(0)
    model, tokenizer = build_model(random_config(3, 5)), VQTokenizer(TINY_VQ).eval()
    none = TokenSet(np.zeros((0, 3, 5), np.int32), np.zeros(0, np.str_), Labels(np.zeros(0, np.int64)))
    few, more = (
        draw_samples(model, tokenizer, "flashar", subjects(model.config, none, count)[0], count, seed=5)
        for count in (4, 6)
    )
    np.testing.assert_array_equal(few, more[:4])
    assert few.shape == (4, 3 * TINY_VQ.downsample, 5 * TINY_VQ.downsample, 3)
    conditions, names = subjects(model.config, none, 12)
    assert conditions.tensors["labels"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1] and names[11] == "class 1"
