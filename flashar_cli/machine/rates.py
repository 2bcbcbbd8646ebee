"""What this machine reaches: copies and matrix products."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import PositiveFloat

from flashar_cli.config import Config
from flashar_cli.machine.timing import best_s

MOST_PRODUCT_S = 0.5


class Rates(Config):
    """A plain copy (bytes read plus bytes written) and a square matrix product."""

    copy_bytes_per_s: PositiveFloat
    matmul_flops_per_s: PositiveFloat


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Copy and matrix-product rates of this machine at this moment, in this dtype. Takes about a second."""
    num_bytes = 2**31 if device.type == "cuda" else 2**27
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source), device, repeats=5)
    return Rates(copy_bytes_per_s=2 * num_bytes / copy_s, matmul_flops_per_s=matmul_flops_per_s(device, dtype))


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a square matrix product, the largest that takes at most MOST_PRODUCT_S."""
    # Random numbers: where power limits a GPU, it multiplies constants faster than any model's weights.
    side, largest = 256, 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    while True:
        left, right = (torch.randn(side, side, dtype=dtype, device=device, generator=generator) for _ in range(2))
        seconds = best_s(partial(torch.matmul, left, right), device, repeats=5)
        if side == largest or 8 * seconds > MOST_PRODUCT_S:
            return 2 * side**3 / seconds
        side *= 2
