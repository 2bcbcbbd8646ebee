"""Inception Scores that are known, and those of another implementation."""

import warnings

import numpy as np
import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from flashar_cli.evaluation.inception_score import inception_score


def test_sure_and_varied_predictions_score_their_number_of_classes() -> None:
    assert inception_score(1000 * np.eye(8).repeat(5, axis=0)) == pytest.approx(8)


def test_predictions_that_are_all_alike_score_one() -> None:
    assert inception_score(np.tile(np.random.default_rng(0).standard_normal(9), (40, 1))) == pytest.approx(1)


def test_two_predictions_by_hand() -> None:
    # p = (3/4, 1/4) and (1/4, 3/4), whose mean is (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2 for both.
    logits = np.log([[3.0, 1.0], [1.0, 3.0]])
    assert inception_score(logits) == pytest.approx(np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5)))


def test_it_is_what_torchmetrics_finds() -> None:
    logits = np.random.default_rng(2).standard_normal((600, 30)) * 4 + 20
    metric = InceptionScore(feature=torch.nn.Flatten(), splits=1).set_dtype(torch.float64)
    metric.update(torch.from_numpy(logits)[:, :, None, None])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="std")  # of one part
        expected = metric.compute()[0].item()
    assert inception_score(logits) == pytest.approx(expected, rel=1e-6)


def test_the_last_part_may_be_smaller() -> None:
    logits = np.random.default_rng(3).standard_normal((25, 4))
    parts = [inception_score(logits[:10]), inception_score(logits[10:20]), inception_score(logits[20:])]
    assert inception_score(logits, 10) == pytest.approx(np.mean(parts))
