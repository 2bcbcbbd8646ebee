"""Judges images of the drawn shapes by the shipped classifier."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.data.conditions import Given
from flashar_cli.data.shapes import CLASS_NAMES, HELD_OUT_SEED, NUM_CLASSES, SIZE, draw_batch
from flashar_cli.data.sources.shapes import HELD_OUT_SHAPES
from flashar_cli.evaluation.judges.base import Figure, Images, Judge, distance_figure
from flashar_cli.evaluation.moments import Moments
from flashar_cli.evaluation.shape_classifier import ShapeClassifier, load_classifier
from flashar_cli.tokenizers.pixels import from_uint8

NUM_HELD_OUT = 5000
BATCH = 50


class ShapesJudge(Judge):
    """Class accuracy, and the Frechet distance to held-out drawings in the features of the shape classifier."""

    name = "the shape classifier"
    data = HELD_OUT_SHAPES
    side, num_images = SIZE, 5000

    def obstacle(self, config: ModelConfig) -> str | None:
        if isinstance(config.prefix, ClassPrefix) and config.class_names == CLASS_NAMES:
            return None
        return "the shape classifier knows the ten drawn shapes alone"

    def asked(self, config: ModelConfig, num_images: int) -> Given:
        """All classes in turn."""
        return Given(labels=f"0-{NUM_CLASSES - 1}")

    @cached_property
    def _classifier(self) -> ShapeClassifier:
        return load_classifier()

    @cached_property
    def reference(self) -> Moments:
        """Of held-out images as drawn."""
        drawn = (draw_batch(HELD_OUT_SEED, start, BATCH)[0] for start in range(0, NUM_HELD_OUT, BATCH))
        return Moments.merged([Moments.of(self._look(images)[0]) for images in drawn])

    def figures(self, images: Images, config: ModelConfig) -> list[Figure]:
        looks = [self._look(batch) for batch in images]
        features, found = (np.concatenate(parts) for parts in zip(*looks, strict=True))
        right = found == np.arange(len(found)) % NUM_CLASSES
        accuracy = float(right.mean())
        return [
            Figure("accuracy", accuracy, float(np.sqrt(accuracy * (1 - accuracy) / len(right))), "higher"),
            distance_figure("frechet_distance", features, NUM_CLASSES, self.reference),
        ]

    @torch.inference_mode()
    def _look(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features [B, F] and classes [B] of uint8 [B, 64, 64, 3]."""
        hidden = self._classifier.features(from_uint8(images))
        return hidden.numpy(), self._classifier.head(hidden).argmax(dim=-1).numpy()
