"""Metrics as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO


class MetricsFile:
    """Appends one JSON object per record to ``path``, ``kind`` first.

    ``resume_at`` is the number of steps that a resumed run has behind it: what the file says of later ones, and a line
    torn by a kill, are dropped; 0 starts a new file. ``records`` holds all validations; ``echo`` gets a readable line
    for each of them and for every ``echo_every``-th step.
    """

    def __init__(self, path: Path, resume_at: int = 0, echo: TextIO | None = None, echo_every: int = 20) -> None:
        self.path = path
        self.validations: list[dict[str, Any]] = []
        self._echo, self._echo_every = echo, echo_every
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_records(path) if _is_past(record, resume_at)] if resume_at else []
        path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        for record in kept:
            if record.pop("kind") == "validation":
                self.validations.append(record)

    def __call__(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "validation":
            self.validations.append(record)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **record}) + "\n")
        if self._echo is not None and (kind != "step" or record["step"] % self._echo_every == 0):
            values = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
            print(f"{kind}: {values}", file=self._echo, flush=True)


def read_records(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # torn by a kill, and so the last
            break
    return records


def _is_past(record: dict[str, Any], resume_at: int) -> bool:
    """A step is past once it is done, a validation once the steps before it are."""
    return record["step"] < resume_at if record["kind"] == "step" else record["step"] <= resume_at
