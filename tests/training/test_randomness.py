"""The random numbers of training: their frequencies, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest

from flashar_cli.nn.hashing import hash_uniform
from flashar_cli.training.randomness import (
    batch_rows,
    choose_view,
    condition_drop,
    corrupt_tokens,
    token_drop,
    unknown_cells,
)

ROWS = np.arange(4000)
TOKENS = np.zeros((4000, 6), np.int64)
DRAWS = {
    "class drop": lambda seed, epochs, rows: condition_drop(0.4, seed, epochs, rows),
    "token drop": lambda seed, epochs, rows: token_drop(0.4, 6, seed, epochs, rows),
    "corruption": lambda seed, epochs, rows: corrupt_tokens(TOKENS[: len(rows)], 0.4, 2**40, seed, epochs, rows) > 0,
}


def at(epoch: int, rows: np.ndarray = ROWS) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(rows), epoch), rows


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_draws_follow_from_seed_epoch_and_sample(draw):
    first = draw(0, *at(0))
    assert abs(first.mean() - 0.4) < 6 * (0.24 / first.size) ** 0.5  # six standard errors of a share
    for other in (draw(1, *at(0)), draw(0, *at(1)), draw(0, *at(0, ROWS + 4000))):
        assert abs((first & other).mean() - 0.16) < 6 * (0.16 * 0.84 / first.size) ** 0.5  # independent
    assert np.array_equal(first[7:30], draw(0, *at(0, ROWS[7:30])))
    mixed = draw(0, np.array([0, 1]), np.array([5, 5]))
    assert np.array_equal(mixed[0], first[5]) and np.array_equal(mixed[1], draw(0, *at(1))[5])


def test_draws_of_several_kinds_are_independent():
    drop, blank, noisy = (draw(0, *at(0)).reshape(4000, -1)[:, 0] for draw in DRAWS.values())
    for first, second in ((drop, blank), (drop, noisy), (blank, noisy)):
        assert abs((first & second).mean() - 0.16) < 6 * (0.16 * 0.84 / 4000) ** 0.5


def test_every_code_is_as_likely_a_replacement():
    noisy = corrupt_tokens(np.full((4000, 6), -1), 1.0, 8, 0, *at(0))
    assert abs(np.bincount(noisy.ravel(), minlength=8) - 3000).max() < 6 * 51  # a binomial's deviation is 51
    assert (noisy[:, 0] == noisy[:, 1]).mean() < 0.2


def test_extremes_and_the_hash_itself():
    assert not condition_drop(0.0, 0, *at(0)).any() and condition_drop(1.0, 0, *at(0)).all()
    assert np.array_equal(condition_drop(0.3, 7, *at(2)), hash_uniform(7, 1, np.full(4000, 2), ROWS) < 0.3)


def test_batches_go_on_where_the_last_ended():
    """Ten samples in batches of four: epoch 0 is steps 0, 1 and half of 2."""
    drawn = [batch_rows(10, 4, 3, step) for step in range(5)]
    rows, epochs = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    assert epochs.tolist() == [0] * 10 + [1] * 10
    for epoch in range(2):
        expected = np.random.default_rng([3, epoch]).permutation(10)
        assert rows[epochs == epoch].tolist() == expected.tolist()
    assert not np.array_equal(batch_rows(100, 50, 0, 0)[0], batch_rows(100, 50, 1, 0)[0])
    assert batch_rows(3, 8, 0, 0)[1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_views_follow_from_seed_epoch_and_sample():
    first, second = (choose_view(10, 0, *at(epoch)) for epoch in (0, 1))
    counts = np.bincount(first, minlength=10)
    assert len(counts) == 10 and abs(counts - 400).max() < 6 * 19  # a binomial's deviation is 19
    assert 0.05 < (first == second).mean() < 0.15
    assert np.array_equal(first[7:30], choose_view(10, 0, *at(0, ROWS[7:30])))
    assert not np.array_equal(first, choose_view(10, 1, *at(0)))
    assert not choose_view(1, 0, *at(0)).any()


def test_unknown_cells_are_of_every_number_as_often():
    """Blocks of 4, and the last of 2: 1 to 4 (1 or 2) cells, the first one only with all others."""
    unknown = unknown_cells(10, 4, 0, *at(0))
    for first, size in ((0, 4), (4, 4), (8, 2)):
        block = unknown[:, first : first + size]
        counts = block.sum(axis=1)
        deviation = (4000 / size * (1 - 1 / size)) ** 0.5
        assert abs(np.bincount(counts, minlength=size + 1)[1:] - 4000 / size).max() < 5 * deviation
        assert np.array_equal(block[:, 0], counts == size)
        if size == 4:
            one = block[counts == 1, 1:].mean(axis=0)  # of one unknown cell, which
            assert abs(one - 1 / 3).max() < 5 * (2 / 9 / 1000) ** 0.5
    assert not np.array_equal(unknown[:, :4], unknown[:, 4:8])
    for other in (unknown_cells(10, 4, 1, *at(0)), unknown_cells(10, 4, 0, *at(1))):
        assert not np.array_equal(unknown, other)
    assert np.array_equal(unknown[7:30], unknown_cells(10, 4, 0, *at(0, ROWS[7:30])))
