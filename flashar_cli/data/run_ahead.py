"""Results of several threads, in order and a bounded distance ahead of the consumer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_POLL_S = 0.1


def run_ahead(
    items: Iterable[ItemT], work: Callable[[ItemT], ResultT], workers: int, window: int
) -> Generator[ResultT, None, None]:
    """Yields ``work(item)`` for each item, in order; ``workers`` threads keep at most ``window`` results ready.

    A thread of its own iterates ``items``, so that a slow source doesn't hold up the consumer. Exceptions of ``items``
    and ``work`` are raised here.
    """
    ahead: Queue[Future[ResultT] | Exception | None] = Queue(window)
    stop = threading.Event()

    def put(entry: Future[ResultT] | Exception | None) -> bool:
        while not stop.is_set():
            try:
                ahead.put(entry, timeout=_POLL_S)
                return True
            except Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(pool.submit(work, item)):
                    return
        except Exception as error:  # raised again in the consumer's thread
            put(error)
        else:
            put(None)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    producer = threading.Thread(target=produce, name="read", daemon=True)
    producer.start()
    try:
        while (entry := ahead.get()) is not None:
            if isinstance(entry, Exception):
                raise entry
            yield entry.result()
    finally:
        stop.set()
        producer.join()
        pool.shutdown(cancel_futures=True)
