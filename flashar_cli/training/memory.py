"""Bytes that training keeps for its weights."""

from __future__ import annotations

WEIGHT_BYTES = 4  # float32
ADAM_BYTES_PER_WEIGHT = 16  # float32: weight, gradient, two moments


def training_bytes(num_trained: int, num_parameters: int, num_shards: int = 1) -> int:
    """Weights, and gradients and moments of those that are trained, on each of ``num_shards`` processes."""
    frozen = num_parameters - num_trained
    return -(-(ADAM_BYTES_PER_WEIGHT * num_trained + WEIGHT_BYTES * frozen) // num_shards)
