"""TensorBoard event files of all records, where the ``tensorboard`` package is installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from flashar_cli.reporting.records import Record

FOLDER = "tensorboard"
MISSING = "no TensorBoard event files, as its package is not installed: pip install 'flashar[tensorboard]'"


class Writer(Protocol):
    """What of ``torch.utils.tensorboard.SummaryWriter`` is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, walltime: float) -> None: ...

    def close(self) -> None: ...


def has_tensorboard() -> bool:
    """Whether event files can be written."""
    return find_spec("tensorboard") is not None


def open_writer(directory: Path) -> Writer | None:
    """A writer of event files into ``directory``; None where the package is not installed."""
    if not has_tensorboard():
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory))


class EventFiles:
    """Passes the numbers of every record on, tagged ``kind/name``. Without the package it does nothing.

    What ``directory`` holds is replaced by ``past``, the records of a resumed run: a killed process leaves files that
    lack what it had not flushed, and hold steps that are done again.
    """

    def __init__(self, directory: Path, past: Sequence[Record]) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self._writer = open_writer(directory)
        for record in past:
            self(record["kind"], record)

    def __call__(self, kind: str, record: Record) -> None:
        """Takes a record with ``step`` and ``wall_time``."""
        if self._writer is None:
            return
        for name, value in record.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name not in ("step", "wall_time"):
                self._writer.add_scalar(f"{kind}/{name}", float(value), record["step"], record["wall_time"])

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writer is not None:
            self._writer.close()
