"""Drawn shapes: seeded, balanced, and the same in every batch."""

import hashlib

import numpy as np
import pytest

from flashar_cli.data import shapes


def test_a_image_depends_on_seed_and_index_alone() -> None:
    images, labels = shapes.draw_batch(7, 20, 12)
    assert images.dtype == np.uint8 and images.shape == (12, 64, 64, 3)
    assert labels.dtype == np.int64 and labels.tolist() == [index % 10 for index in range(20, 32)]
    for row, index in enumerate(range(20, 32)):
        assert np.array_equal(images[row], shapes.draw(7, index))
    later, _ = shapes.draw_batch(7, 25, 3)
    assert np.array_equal(later, images[5:8])


def test_seeds_and_indices_give_different_images() -> None:
    images, _ = shapes.draw_batch(shapes.TRAINING_SEED, 0, 40)
    held_out, _ = shapes.draw_batch(shapes.HELD_OUT_SEED, 0, 40)
    together = np.concatenate([images, held_out]).reshape(80, -1)
    assert len(np.unique(together, axis=0)) == 80


@pytest.mark.parametrize("start", [0, 3, 1_000_000])
def test_ten_in_a_row_hold_every_class(start: int) -> None:
    _, labels = shapes.draw_batch(0, start, 10)
    assert sorted(labels.tolist()) == list(range(shapes.NUM_CLASSES)) == list(range(len(shapes.CLASS_NAMES)))


def test_the_label_changes_the_shape_and_nothing_else() -> None:
    drawn = [shapes.draw(1, 5, label=label) for label in range(10)]
    assert len({image.tobytes() for image in drawn}) == 10
    corners = {tuple(image[0, 0]) for image in drawn}
    assert len(corners) == 1
    assert np.array_equal(shapes.draw(1, 5), drawn[5])


@pytest.mark.parametrize("label", range(10))
@pytest.mark.parametrize("size", [64, 40])
def test_the_shape_fills_part_of_the_middle_and_leaves_the_corners(label: int, size: int) -> None:
    for index in range(6):
        image = shapes.draw(11, index, label, size).astype(int)
        assert image.shape == (size, size, 3)
        # The first pixel of every row is background, shaded or not.
        differs = np.abs(image - image[:, :1]).sum(axis=-1) > 60
        assert 0.06 < differs.mean() < 0.5
        assert not differs[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        rows, cols = np.nonzero(differs)
        assert abs(rows.mean() / size - 0.5) < 0.25 and abs(cols.mean() / size - 0.5) < 0.25


def test_colours_of_a_pair_are_far_apart_and_half_the_backgrounds_are_shaded() -> None:
    for ground, ink in shapes.colour_pairs():
        distance = np.linalg.norm(np.subtract(shapes.PALETTE[ground], shapes.PALETTE[ink]))
        assert distance >= shapes.MIN_COLOUR_DISTANCE
    images, _ = shapes.draw_batch(0, 0, 200)
    shaded = (images[:, 0, 0].astype(int) - images[:, -1, 0]).sum(axis=-1) > 0
    assert 0.35 < shaded.mean() < 0.65


def test_drawings_are_those_that_the_embedded_models_were_trained_on() -> None:
    """SHA-256 of the pixels of DRAWING_VERSION 1."""
    for images, expected in (
        (shapes.draw_batch(0, 0, 40)[0], "6302ef4b5c3e87622da1a28f63f5c0baae99f172952e14839e8aafb7f1ef6cb7"),
        (shapes.draw(3, 17, label=2, size=40), "2789ec353efad4ae45329faafd5f66b3dd0ba9566a536d0ce38ace4250bcdb28"),
    ):
        assert hashlib.sha256(images.tobytes()).hexdigest() == expected


def test_edges_are_soft() -> None:
    image = shapes.draw(2, 0).reshape(-1, 3)
    assert len(np.unique(image, axis=0)) > 20
