"""The judge of drawn shapes on drawings, whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from flashar_cli.checkpoints import hub
from flashar_cli.config import read_config
from flashar_cli.data.shapes import CLASS_NAMES, HELD_OUT_SEED, draw_batch
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation.judges import choose_judge
from flashar_cli.evaluation.judges.scenes import ScenesJudge
from flashar_cli.evaluation.judges.shapes import ShapesJudge
from tests.tiny_models import random_config

CONFIG = random_config()


@pytest.fixture(scope="module")
def images():
    return draw_batch(HELD_OUT_SEED, 10_000, 200)[0]


@pytest.fixture(scope="module")
def judge():
    return ShapesJudge()


def test_drawings_are_right_and_near(judge, images):
    accuracy, distance = judge.figures([images[:70], images[70:]], CONFIG)
    assert (accuracy.name, accuracy.best, distance.name, distance.best) == (
        "accuracy",
        "higher",
        "frechet_distance",
        "lower",
    )
    assert accuracy.value >= 0.97 and distance.value < 1.5
    assert accuracy.error == pytest.approx(np.sqrt(accuracy.value * (1 - accuracy.value) / 200))
    assert 0 < distance.error < 1


def test_other_shapes_than_asked_for_are_wrong_and_as_near(judge, images):
    right, wrong = judge.figures([images], CONFIG), judge.figures([np.roll(images, 1, axis=0)], CONFIG)
    assert wrong[0].value < 0.03
    assert wrong[1].value == pytest.approx(right[1].value, abs=1e-3)


def test_noise_is_far(judge, images):
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert judge.figures([noise], CONFIG)[1].value > 10


def test_who_judges_what():
    config = random_config()
    assert choose_judge(config, None) is None
    assert isinstance(choose_judge(config.model_copy(update={"class_names": CLASS_NAMES}), None), ShapesJudge)
    assert isinstance(choose_judge(read_config(hub.resolve("emu-tiny")), None), ScenesJudge)
    with pytest.raises(FlasharError, match="the ten drawn shapes alone"):
        choose_judge(config, ShapesJudge())
