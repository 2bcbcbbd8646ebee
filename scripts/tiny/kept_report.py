"""A report of measurements that is kept as they come, so that an interrupted evaluation goes on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from flashar_cli.machine.environment import hardware, software


def open_report(path: Path, subject: dict[str, Any]) -> dict[str, Any]:
    """The report in a file, if it is of this subject, or else a new one without runs; with today's date, hardware and
    software. The folder of the file is made.
    """
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if report.get("subject") != subject:
        report = {"subject": subject, "runs": []}
    report["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    report["software"], report["hardware"] = software().model_dump(), hardware(torch.device("cpu")).model_dump()
    path.parent.mkdir(parents=True, exist_ok=True)
    return report


def keep(report: dict[str, Any], path: Path) -> None:
    """Writes a report."""
    path.write_text(json.dumps(report, indent=2) + "\n")
