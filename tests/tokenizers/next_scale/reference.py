"""Interpolation and both quantizers in float64, from their definitions alone: slow, and of one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashar_cli.grid import Grid

Array = np.ndarray
CUBIC = -0.75  # the parameter of PyTorch's bicubic kernel


def area(source: int, target: int) -> Array:
    """[target, source]: output i is the mean of those inputs that it covers, wholly or in part."""
    matrix = np.zeros((target, source))
    for row in range(target):
        first, last = row * source // target, -(-(row + 1) * source // target)
        matrix[row, first:last] = 1 / (last - first)
    return matrix


def bilinear(source: int, target: int) -> Array:
    """[target, source]: pixel centres are aligned, and the line before the first centre is level."""
    matrix = np.zeros((target, source))
    for row in range(target):
        place = max(0.0, (row + 0.5) * source / target - 0.5)
        first = int(place)
        matrix[row, first] += 1 - (place - first)
        matrix[row, min(first + 1, source - 1)] += place - first
    return matrix


def bicubic(source: int, target: int) -> Array:
    """[target, source]: pixel centres are aligned, and the border is repeated."""
    matrix = np.zeros((target, source))
    for row in range(target):
        place = (row + 0.5) * source / target - 0.5
        for near in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, min(max(near, 0), source - 1)] += _cubic(abs(place - near))
    return matrix


def _cubic(distance: float) -> float:
    if distance <= 1:
        return (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
    return CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def resized(features: Array, size: Grid, kernel) -> Array:
    """[Z, h, w] -> [Z, *size]."""
    _, height, width = features.shape
    return np.einsum("Hh,zhw,Ww->zHW", kernel(height, size.height), features, kernel(width, size.width))


def convolved(features: Array, weight: Array, bias: Array) -> Array:
    """3x3, zeros around: [Z, h, w], [Z, Z, 3, 3], [Z] -> [Z, h, w]."""
    _, height, width = features.shape
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(features) + bias[:, None, None]
    for row in range(3):
        for col in range(3):
            out += np.einsum("oi,ihw->ohw", weight[:, :, row, col], padded[:, row : row + height, col : col + width])
    return out


class Reference:
    """``codebook`` [K, Z] for VAR, None for bits; ``convolutions`` weight and bias of the one each scale passes."""

    def __init__(self, codebook: Array | None, convolutions: Sequence[tuple[Array, Array]] = ()) -> None:
        self.codebook, self.convolutions = codebook, convolutions
        self.up, self.to_next = (bilinear, bilinear) if codebook is None else (bicubic, area)

    def codes(self, tokens: Array) -> Array:
        """[h, w] or [h, w, Z] -> [Z, h, w]."""
        rows = (
            np.where(tokens == 1, 1.0, -1.0) * tokens.shape[-1] ** -0.5
            if self.codebook is None
            else self.codebook[tokens]
        )
        return rows.transpose(2, 0, 1)

    def quantized(self, features: Array) -> Array:
        """The tokens of the nearest codes; of bits, of those on the sphere."""
        if self.codebook is None:
            return (features > 0).transpose(1, 2, 0).astype(np.int64)
        return ((features[None] - self.codebook[:, :, None, None]) ** 2).sum(axis=1).argmin(axis=0)

    def part(self, tokens: Array, index: int, scales: Sequence[Grid]) -> Array:
        """What a scale adds to the latent."""
        whole = resized(self.codes(tokens), scales[-1], self.up)
        return whole if self.codebook is None else (whole + convolved(whole, *self.convolutions[index])) / 2

    def search(self, latent: Array, scales: Sequence[Grid]) -> list[Array]:
        rest, found = latent.copy(), []
        for index, scale in enumerate(scales):
            found.append(self.quantized(resized(rest, scale, area)))
            rest -= self.part(found[-1], index, scales)
        return found
