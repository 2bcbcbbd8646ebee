"""Trains the shape classifier on drawn images, many of them seen through a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.data.shapes import HELD_OUT_SEED, TRAINING_SEED, draw_batch
from flashar_cli.evaluation.shape_classifier import ShapeClassifier
from flashar_cli.tokenizers import ImageTokenizer
from flashar_cli.tokenizers.pixels import from_uint8


@dataclass(frozen=True)
class ClassifierTraining:
    """How the shape classifier is trained."""

    num_images: int = 12000  # drawn once
    num_decoded: int = 3000  # of them, also seen as the tokenizer reproduces them
    decoded_share: float = 0.4  # of a batch
    steps: int = 1200
    batch_size: int = 64
    lr: float = 3e-3  # peak, AdamW, cosine
    weight_decay: float = 0.02
    max_noise: float = 0.08  # standard deviation in [-1, 1] units, uniform from 0
    blur_share: float = 0.25  # of the batches
    seed: int = 0


@dataclass(frozen=True)
class ClassifierReport:
    """Accuracy on held-out images as drawn, and after encoding and decoding."""

    num_images: int
    accuracy_drawn: float
    accuracy_decoded: float


def train_classifier(
    tokenizer: ImageTokenizer, settings: ClassifierTraining, log: Callable[[str], None] = lambda line: None
) -> ShapeClassifier:
    """Trains on shapes of ``TRAINING_SEED``, as drawn and as ``tokenizer`` reproduces them."""
    torch.manual_seed(settings.seed)
    drawn, labels = drawn_images(TRAINING_SEED, settings.num_images)
    decoded = reconstruct(tokenizer, drawn[: settings.num_decoded])
    log(f"{len(drawn)} images drawn, {len(decoded)} decoded")
    from_decoded = round(settings.batch_size * settings.decoded_share)
    model = ShapeClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.lr * (0.02 + 0.49 * (1 + math.cos(math.pi * step / settings.steps)))
        rows_decoded = torch.randint(len(decoded), (from_decoded,))
        rows_drawn = torch.randint(len(drawn), (settings.batch_size - from_decoded,))
        targets = labels[torch.cat([rows_decoded, rows_drawn])]
        logits = model(_augment(torch.cat([decoded[rows_decoded], drawn[rows_drawn]]), settings))
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            accuracy = (logits.argmax(dim=-1) == targets).float().mean()
            log(f"step {step + 1}/{settings.steps} loss {loss.item():.4f} batch_accuracy {accuracy.item():.3f}")
    return model.eval()


def evaluate_classifier(model: ShapeClassifier, tokenizer: ImageTokenizer, num_images: int = 2000) -> ClassifierReport:
    """Accuracies on the first images of ``HELD_OUT_SEED``."""
    drawn, labels = drawn_images(HELD_OUT_SEED, num_images)

    def accuracy(images: Tensor) -> float:
        right = [
            (model.classify(part) == label).sum()
            for part, label in zip(images.split(100), labels.split(100), strict=True)
        ]
        return int(torch.stack(right).sum()) / num_images

    return ClassifierReport(num_images, accuracy(drawn), accuracy(reconstruct(tokenizer, drawn)))


def drawn_images(seed: int, num_images: int) -> tuple[Tensor, Tensor]:
    """The first images of ``seed``: float [num_images, 3, 64, 64] in [-1, 1], labels int64 [num_images]."""
    images, labels = draw_batch(seed, 0, num_images)
    return from_uint8(images), torch.from_numpy(labels)


@torch.no_grad()
def reconstruct(tokenizer: ImageTokenizer, images: Tensor, batch_size: int = 50) -> Tensor:
    """[B, 3, h, w] -> the same after encoding and decoding, clamped to [-1, 1]."""
    parts = [tokenizer.decode(tokenizer.encode(part)).clamp(-1, 1) for part in images.split(batch_size)]
    return torch.cat(parts)


def _augment(images: Tensor, settings: ClassifierTraining) -> Tensor:
    """Noise of a random strength, and now and then a light blur, so that small decoding faults are forgiven."""
    if torch.rand(()) < settings.blur_share:
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    strength = torch.rand(len(images), 1, 1, 1) * settings.max_noise
    return images + strength * torch.randn_like(images)
