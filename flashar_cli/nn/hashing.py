"""Uniform numbers as a pure function of integer keys, so that no generator's state has to be kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK64 = (1 << 64) - 1


def hash_uniform(*keys: int | NDArray[np.integer]) -> NDArray[np.float32]:
    """float32 in [0, 1), one number for each combination of the broadcast integer keys (24 random bits)."""
    bits = hash_bits(*keys) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2**-24)


def hash_bits(*keys: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 hashed bits (splitmix64) for each combination of the broadcast integer keys."""
    state = np.zeros((), dtype=np.uint64)
    for key in keys:
        word = np.array(key & _MASK64, dtype=np.uint64) if isinstance(key, int) else key.astype(np.uint64)
        state = _mix(state + word)
    return state


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # splitmix64 is a bijection of 64-bit integers, so keys that differ in one place never collide.
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
