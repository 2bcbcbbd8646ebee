"""Weights for parity tests: each tensor follows from its upstream name alone, so none has to be stored."""

import zlib

import numpy as np
import torch


def tensor_for(name: str, shape: tuple[int, ...], scale: float = 0.08) -> torch.Tensor:
    """float32 [*shape]: normal noise of standard deviation ``scale``, around 1 for a norm's gain and 0 elsewhere."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    is_gain = len(shape) == 1 and name.endswith("weight")
    return torch.from_numpy(values + 1 if is_gain else values)
