"""Ctrl-C and SIGTERM between two optimizer steps, never within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from flashar_cli.training.parallel import sum_over_processes
from flashar_cli.training.signals import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredInterrupt:
    """While active, the first SIGINT or SIGTERM is only noted in ``requested``; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def of_any_process(self) -> BaseException | None:
        """What to raise once a signal has reached any of the processes; all of them call this at the same step."""
        interrupted, terminated = sum_over_processes([float(self.requested == number) for number in SIGNALS])
        return KeyboardInterrupt() if interrupted else Terminated() if terminated else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
