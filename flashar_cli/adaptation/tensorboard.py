"""TensorBoard event files of all records, written where the ``tensorboard`` package is installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flashar_cli.training.metrics import Record

FOLDER = "tensorboard"
MISSING = "no TensorBoard event files, as its package is not installed: pip install 'flashar[tensorboard]'"


def has_tensorboard() -> bool:
    """Whether event files can be written."""
    return find_spec("tensorboard") is not None


def open_writer(directory: Path) -> Any:
    """A ``SummaryWriter`` into ``directory``; None where the package is not installed."""
    if not has_tensorboard():
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory))


class EventFiles:
    """Writes the numbers of every record, tagged ``kind/name``. Without the package it does nothing.

    It replaces the files of ``directory`` by ``past``, the records of a resumed run: files of a killed process lack
    records that it had not flushed, and have steps that are done again.
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
        """Writes records that are still in memory."""
        if self._writer is not None:
            self._writer.close()
