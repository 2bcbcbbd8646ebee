"""Metrics as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO


class MetricsFile:
    """Appends one JSON object per record to ``path``, ``kind`` first. ``last`` keeps the newest record of each kind;
    ``echo`` gets a readable line for validations and for every ``echo_every``-th step.
    """

    def __init__(self, path: Path, echo: TextIO | None = None, echo_every: int = 20) -> None:
        self.path = path
        self.last: dict[str, dict[str, Any]] = {}
        self._echo, self._echo_every = echo, echo_every
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            record = json.loads(line)
            self.last[record.pop("kind")] = record

    def __call__(self, kind: str, record: dict[str, Any]) -> None:
        self.last[kind] = record
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **record}) + "\n")
        if self._echo is not None and (kind != "step" or record["step"] % self._echo_every == 0):
            values = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
            print(f"{kind}: {values}", file=self._echo, flush=True)
