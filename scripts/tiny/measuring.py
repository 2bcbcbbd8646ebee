"""Samples of a model that is in memory, and what a judge says of them."""

from __future__ import annotations

from flashar_cli.api import ImageModel
from flashar_cli.data.shapes import NUM_CLASSES
from flashar_cli.evaluation.judges.base import Judge

BATCH = 50


def measure(
    model: ImageModel, decoder: str, scale: float, seed: int, num_images: int, judge: Judge
) -> dict[str, float]:
    """The figures of ``num_images`` samples at a guidance scale, classes in turn."""
    labels = [index % NUM_CLASSES for index in range(num_images)]
    images = model.generate(labels, decoder=decoder, seed=seed, batch_size=BATCH, cfg_scale=scale).images
    assert images is not None
    parts = (images[start : start + BATCH] for start in range(0, num_images, BATCH))
    return {figure.name: figure.value for figure in judge.figures(parts, model.config)}
