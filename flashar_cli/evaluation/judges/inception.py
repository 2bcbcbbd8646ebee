"""Judges images by the features of the Inception network, as published figures do."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.data.conditions import Given
from flashar_cli.evaluation.frechet import frechet_distance
from flashar_cli.evaluation.inception import Inception
from flashar_cli.evaluation.inception_score import inception_score
from flashar_cli.evaluation.judges.base import Figure, Images, Judge, distance_figure
from flashar_cli.evaluation.manifold import precision_recall
from flashar_cli.evaluation.moments import Moments
from flashar_cli.evaluation.reference import Reference

BATCH = 64


class InceptionJudge(Judge):
    """FID, sFID, Inception Score, precision and recall against the reference of a training set."""

    name = "Inception features"
    num_images = 50_000

    def __init__(self, inception: Inception, reference: Reference) -> None:
        self._inception, self._reference = inception, reference
        self.side = reference.images.shape[1]

    def obstacle(self, config: ModelConfig) -> str | None:
        if isinstance(config.prefix, ClassPrefix):
            return None
        return "--reference is for class-conditional models; for prompts use `flashar generate --geneval`"

    def asked(self, config: ModelConfig, num_images: int) -> Given:
        """All classes in turn."""
        assert isinstance(config.prefix, ClassPrefix)
        return Given(labels=f"0-{config.prefix.num_classes - 1}")

    def figures(self, images: Images, config: ModelConfig) -> list[Figure]:
        assert isinstance(config.prefix, ClassPrefix)
        pool, spatial = self._look(images)
        logits = self._inception.logits(pool).numpy()
        shares = precision_recall(self._real, pool)
        return [
            distance_figure("fid", pool.numpy(), config.prefix.num_classes, self._reference.pool),
            Figure("sfid", frechet_distance(Moments.of(spatial), self._reference.spatial), None, "lower"),
            Figure("inception_score", inception_score(logits), None, "higher"),
            Figure("precision", shares.precision, None, "higher"),
            Figure("recall", shares.recall, None, "higher"),
        ]

    @cached_property
    def _real(self) -> torch.Tensor:
        """Pooled features of the reference's images."""
        return self._look(self._reference.images.batches(BATCH))[0]

    def _look(self, images: Images) -> tuple[torch.Tensor, np.ndarray]:
        """Pooled features [N, 2048] and spatial ones [N, 2023], in memory."""
        looks = [self._inception.features(batch) for batch in images]
        return torch.cat([pool.cpu() for pool, _ in looks]), np.concatenate([part.cpu().numpy() for _, part in looks])
