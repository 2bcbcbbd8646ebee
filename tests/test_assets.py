"""The embedded models: small, whole, and as good as their card says, on samples small enough for every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flashar_cli
from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.config import read_config
from flashar_cli.data.shapes import CLASS_NAMES, HELD_OUT_SEED, draw_batch
from flashar_cli.tokenizers.pixels import from_uint8
from scripts.tiny.shape_classifier import load_classifier
from scripts.tiny.tokenizer_training import evaluate_tokenizer


def test_they_take_less_than_12_mb_together():
    sizes = [path.stat().st_size for path in hub.ASSETS.rglob("*") if path.is_file()]
    assert 4e6 < sum(sizes) < 12e6


@pytest.mark.parametrize("name", hub.EMBEDDED)
def test_they_are_whole_and_in_half_precision(name):
    directory = hub.resolve(name)
    assert checkpoint.problems(directory) == []
    assert checkpoint.stored_dtype(directory) == torch.float16
    config = read_config(directory)
    assert config.class_names == CLASS_NAMES and str(config.order_grid) == "16x16"
    assert (config.branch is None) == (name == "llamagen-tiny")
    assert config.provenance.data_fingerprint and config.provenance.recipe


def test_classifier_on_held_out_images():
    images, labels = draw_batch(HELD_OUT_SEED, 0, 500)
    found = load_classifier().classify(from_uint8(images)).numpy()
    assert (found == labels).mean() >= 0.97


def test_reconstruction_on_held_out_images():
    tokenizer = flashar_cli.load("llamagen-tiny").tokenizer
    assert tokenizer is not None
    assert evaluate_tokenizer(tokenizer, num_images=100).psnr_db >= 28


@pytest.mark.parametrize("name", hub.EMBEDDED)
def test_most_samples_show_their_class(name):
    # 50 samples of a model that is right 9 times in 10: fewer than 38 right has a chance below 1 in 1000.
    labels = np.arange(50) % 10
    made = flashar_cli.load(name).generate(labels.tolist(), seed=0, batch_size=50)
    assert made.images is not None
    found = load_classifier().classify(from_uint8(made.images)).numpy()
    assert (found == labels).sum() >= 38
