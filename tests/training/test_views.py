"""Which view of a picture an epoch shows."""

from __future__ import annotations

import numpy as np

from flashar_cli.data.codes import CodeSet
from flashar_cli.training import loop
from flashar_cli.training.parallel import Parallel
from flashar_cli.training.randomness import choose_view
from tests.training.test_loop import TWO_STAGES, make_run


def test_views_follow_from_seed_epoch_and_sample():
    rows = np.arange(4000)
    first, second = (choose_view(10, 0, np.full(4000, epoch), rows) for epoch in (0, 1))
    counts = np.bincount(first, minlength=10)
    assert len(counts) == 10 and abs(counts - 400).max() < 6 * 19  # a binomial's deviation is 19
    assert 0.05 < (first == second).mean() < 0.15
    assert np.array_equal(first[7:30], choose_view(10, 0, np.zeros(23, np.int64), rows[7:30]))
    assert not np.array_equal(first, choose_view(10, 1, np.zeros(4000, np.int64), rows))
    assert not choose_view(1, 0, np.zeros(50, np.int64), rows[:50]).any()


def test_training_uses_all_views_and_validation_the_first(tmp_path, monkeypatch):
    run = make_run(tmp_path, TWO_STAGES, corruption=0.0)
    views = np.broadcast_to(np.arange(3)[None, :, None, None], (16, 3, 3, 4)).astype(np.uint16)
    run.train = CodeSet(views, run.train.ids, run.train.labels)
    run.validation = run.train.take(slice(0, 4))
    seen, loss = [], loop.losses_of

    def spy(model, hidden, targets, codes_BN, *rest):
        seen.append(codes_BN[:, 0].tolist())
        assert (codes_BN == codes_BN[:, :1]).all()
        return loss(model, hidden, targets, codes_BN, *rest)

    monkeypatch.setattr(loop, "losses_of", spy)
    for epoch in range(4):
        loop.batch_losses(
            run, Parallel(run.model, run.engine, run.dtype), TWO_STAGES[1].settings, np.arange(16), np.full(16, epoch)
        )
    shown = np.array(seen)
    assert set(shown.flatten()) == {0, 1, 2} and sum(len(set(column)) > 1 for column in shown.T) > 12
    assert not run.validation.tensors(run.model.device)[0].any()
