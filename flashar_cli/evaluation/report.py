"""``eval.json``: what was measured, of which samples. The report for people is made from it alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from flashar_cli.config import Config
from flashar_cli.machine.environment import Hardware, Software, hardware, software

REPORT_FILE, PAGE_FILE = "eval.json", "eval.html"


class FigureReport(Config):
    """One figure; ``error`` is its standard error, null where it is not estimated."""

    name: str
    value: float
    error: float | None
    best: str


class CodeLengthReport(Config):
    """Nats per token of one head: of all cells that it predicts, of those of each row and of each column; null where it
    predicts none.
    """

    head: str
    total: float
    by_row: tuple[float | None, ...]
    by_column: tuple[float | None, ...]


class ArmReport(Config):
    """One model under one decoder. ``samples_sha256`` is that of the archive; null where nothing was sampled.
    ``validation`` says what the code lengths are of.
    """

    name: str
    model: str
    weights_sha256: str
    decoder: str
    settings: dict[str, Any]
    judge: str | None
    num_images: int
    samples_sha256: str | None
    figures: tuple[FigureReport, ...]
    code_lengths: tuple[CodeLengthReport, ...]
    validation: str | None


class EvalReport(Config):
    """The whole document."""

    date: str
    command: tuple[str, ...]
    seed: int
    hardware: Hardware
    software: Software
    arms: tuple[ArmReport, ...]

    @classmethod
    def of(cls, arms: Sequence[ArmReport], command: Sequence[str], seed: int, device: torch.device) -> EvalReport:
        """What was measured just now, here."""
        return cls(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=tuple(command),
            seed=seed,
            hardware=hardware(device),
            software=software(),
            arms=tuple(arms),
        )
