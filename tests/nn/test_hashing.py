"""Hashed numbers against splitmix64 written with Python's own integers."""

from __future__ import annotations

import numpy as np

from flashar_cli.nn.hashing import hash_bits, hash_uniform

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def reference(*keys: int) -> int:
    state = 0
    for key in keys:
        state = splitmix((state + (key & MASK)) & MASK)
    return state


def test_bits_are_those_of_splitmix64():
    # The first output of the published generator seeded with 1234567 (prng.di.unimi.it/splitmix64.c).
    assert int(hash_bits(1234567)) == 6457827717110365317
    rows, cells = np.arange(3)[:, None], np.arange(4)[None]
    bits = hash_bits(-5, rows, 2**63 + 1, cells)
    assert bits.tolist() == [[reference(-5, r, 2**63 + 1, c) for c in range(4)] for r in range(3)]
    assert hash_uniform(-5, rows, cells).tolist() == [
        [(reference(-5, r, c) >> 40) / 2**24 for c in range(4)] for r in range(3)
    ]


def test_the_place_of_a_key_counts():
    assert len({int(hash_bits(*keys)) for keys in ((1, 2), (2, 1), (3,), (0, 3), (3, 0), (1, 2, 0))}) == 6
