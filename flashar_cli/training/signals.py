"""SIGTERM as an exception. No torch here: the command line imports it."""

from __future__ import annotations

from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived and nothing is lost by leaving. Not an Exception, as KeyboardInterrupt is none."""


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """A handler for SIGTERM."""
    raise Terminated
