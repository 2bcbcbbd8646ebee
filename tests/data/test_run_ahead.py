from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from flashar_cli.data.run_ahead import run_ahead


def test_order_is_kept_and_the_distance_bounded():
    asked, taken = [], []

    def items():
        for index in range(60):
            asked.append(index)
            assert len(asked) - len(taken) <= 8 + 4  # the window, one at either end, one in each hand
            yield index

    def work(index):
        time.sleep(0.002 * (index % 3))
        return index * index

    for result in run_ahead(items(), work, workers=3, window=8):
        taken.append(result)
    assert taken == [index * index for index in range(60)]


def test_errors_reach_the_consumer_and_nothing_keeps_running():
    def items():
        yield from range(5)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        list(run_ahead(items(), lambda item: item, 2, 4))
    with pytest.raises(ZeroDivisionError):
        list(run_ahead(range(5), lambda item: 1 // (item - 3), 2, 4))
    with closing(run_ahead(iter(int, 1), lambda item: item, 2, 4)) as endless:
        assert next(endless) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]
