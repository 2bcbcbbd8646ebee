"""Ctrl-C and SIGTERM between two optimizer steps, never within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from flashar_cli.machine.processes import sum_over_processes
from flashar_cli.training.signals import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class DeferredInterrupt:
    """Within the context, the first SIGINT or SIGTERM is only kept in ``requested``; a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def of_any_process(self) -> BaseException | None:
        """The exception for a signal to any of the processes, if there was one. All call this at the same step."""
        interrupted, terminated = sum_over_processes([float(self.requested == number) for number in SIGNALS])
        return KeyboardInterrupt() if interrupted else Terminated() if terminated else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
