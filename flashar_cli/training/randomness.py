"""All randomness of training, as pure functions of (seed, epoch, row): the same after a restart and for any number of
processes.

Letters: B batch, N = H*W cells, R rank of an adapter, I inputs of its layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashar_cli.nn.hashing import hash_bits, hash_uniform

_CLASS_DROP, _CORRUPT, _CORRUPT_TOKEN, _VIEW, _TOKEN_DROP, _ADAPTER, _NUM_UNKNOWN, _UNKNOWN = range(1, 9)


def batch_rows(num_samples: int, batch_size: int, seed: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows int64 [B] of the global batch of a step, and the epoch of each. Every epoch has its own order, and a batch
    may contain rows of two.
    """
    place = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, within = place // num_samples, place % num_samples
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        permutation = np.random.default_rng([seed, int(epoch)]).permutation(num_samples)
        rows[epochs == epoch] = permutation[within[epochs == epoch]]
    return rows, epochs


def choose_view(num_views: int, seed: int, epochs: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [B]: which of its views each row shows in its epoch."""
    return (hash_bits(seed, _VIEW, epochs, rows) % np.uint64(num_views)).astype(np.int64)


def condition_drop(
    probability: float, seed: int, epochs: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """bool [B]: which rows lose their condition, for classifier-free guidance."""
    return hash_uniform(seed, _CLASS_DROP, epochs, rows) < probability


def token_drop(
    probability: float, num_cells: int, seed: int, epochs: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """bool [B, N]: which context tokens lose their embedding, in raster order."""
    cells = np.arange(num_cells)[None, :]
    return hash_uniform(seed, _TOKEN_DROP, epochs[:, None], rows[:, None], cells) < probability


def corrupt_tokens(
    tokens_BN: NDArray[np.int64],
    probability: float,
    vocab_size: int,
    seed: int,
    epochs: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Tokens int64 [B, N], of which each is replaced, with this probability, by one sampled uniformly."""
    cells = np.arange(tokens_BN.shape[1])[None, :]
    keys = (epochs[:, None], rows[:, None], cells)
    replacement = (hash_bits(seed, _CORRUPT_TOKEN, *keys) % np.uint64(vocab_size)).astype(np.int64)
    return np.where(hash_uniform(seed, _CORRUPT, *keys) < probability, replacement, tokens_BN)


def unknown_cells(
    num_cells: int, block: int, seed: int, epochs: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """bool [B, N]: which cells of an image in raster order block diffusion does not know: of each block any number from
    one to all of them, equally often, and of that number any cells, equally often, but the first cell of a block only
    together with all others, as it is drawn first.
    """
    cells = np.arange(num_cells)
    first = cells // block * block
    sizes = np.minimum(block, num_cells - first)
    keys = (epochs[:, None], rows[:, None])
    counts = 1 + (hash_bits(seed, _NUM_UNKNOWN, *keys, first) % sizes.astype(np.uint64)).astype(np.int64)
    scores = np.where(cells == first, 2.0, hash_uniform(seed, _UNKNOWN, *keys, cells))  # the lowest are unknown
    unknown = np.empty(scores.shape, bool)
    for begin in range(0, num_cells, block):
        part = slice(begin, begin + block)
        unknown[:, part] = scores[:, part].argsort(axis=1).argsort(axis=1) < counts[:, part]
    return unknown


def is_drawn(unknown: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    """bool [B, N]: the cells that block diffusion learns to draw: the unknown ones, and the first of each block, which
    is predicted from what is before the block. The mean over unknown cells, of whatever number, is the objective of
    MaskGIT (arXiv 2202.04200).
    """
    return unknown | (np.arange(unknown.shape[1]) % block == 0)


def adapter_start(number: int, rank: int, num_inputs: int, seed: int) -> NDArray[np.float32]:
    """float32 [R, I]: where matrix A of adapter ``number`` starts, uniform within 1 / sqrt(I) of 0, as in peft."""
    uniform = hash_uniform(seed, _ADAPTER, number, np.arange(rank)[:, None], np.arange(num_inputs)[None, :])
    return (2 * uniform - 1) / np.float32(np.sqrt(num_inputs))
