"""SIGTERM as an exception. No torch here: the command line imports it."""

from __future__ import annotations

from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived, and all work is saved. As KeyboardInterrupt, this is not an Exception."""


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """A handler for SIGTERM."""
    raise Terminated
