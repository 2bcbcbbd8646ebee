"""A small judge of drawn shapes: which of the ten an image shows, and features to compare sets of images by."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from flashar_cli.checkpoints.hub import ASSETS
from flashar_cli.data.shapes import NUM_CLASSES, SIZE
from flashar_cli.errors import FlasharError

FEATURES = 64


class ShapeClassifier(nn.Module):
    """Four stride-2 convolutions, average pooling, one linear layer; about 90 k parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 32, 48, FEATURES)
        self.convs = nn.ModuleList(
            nn.Conv2d(width_in, width, 3 if width_in > 3 else 5, stride=2, padding=1 if width_in > 3 else 2)
            for width_in, width in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.last = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.head = nn.Linear(FEATURES, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """float [B, 3, 64, 64] in [-1, 1] -> pooled features float [B, 64]. Raises FlasharError for other sizes."""
        if tuple(images.shape[1:]) != (3, SIZE, SIZE):
            raise FlasharError(f"images have shape {tuple(images.shape)}; the shape classifier takes [B, 3, 64, 64]")
        hidden = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.silu(norm(conv(hidden)))
        return F.silu(self.last(hidden)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, 64, 64] in [-1, 1] -> logits [B, 10], in the order of ``shapes.CLASS_NAMES``."""
        return self.head(self.features(images))

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """float [B, 3, 64, 64] in [-1, 1] -> labels int64 [B]."""
        return self(images).argmax(dim=-1)


def load_classifier() -> ShapeClassifier:
    """The shipped classifier, in float32."""
    classifier = ShapeClassifier().eval()
    state = load_file(ASSETS / "shape-classifier" / "classifier.safetensors")
    classifier.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return classifier
