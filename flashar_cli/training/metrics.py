"""Metrics as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import Field, RootModel

from flashar_cli.config import Config, validated
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file
from flashar_cli.reading import decode_text, parse_json, read_lines

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int | float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Stamped(Config):
    """What every record has: steps done, or for a step its number from 0 on; seconds since 1970 and the most memory
    used, where a run notes them.
    """

    step: Count
    wall_time: NotNegative | None = None
    peak_memory_bytes: Count | None = None


class StartRecord(Stamped):
    """A process begins or resumes a run: what it is about to do, and on what."""

    kind: Literal["start"]
    stage_steps: dict[str, Annotated[int, Field(gt=0)]] = Field(min_length=1)
    batch_size: Annotated[int, Field(gt=0)]
    flops_per_image: dict[str, Positive]
    matmul_flops_per_s: Positive
    num_processes: Annotated[int, Field(gt=0)]


class StepRecord(Stamped, extra="allow", allow_inf_nan=True):
    """An optimizer step, with its losses. These are measured, so they may be infinite or no numbers."""

    __pydantic_extra__: dict[str, float] = Field(init=False)
    kind: Literal["step"]
    stage: str
    lr: NotNegative
    images_per_s: NotNegative


class ValidationRecord(Stamped, extra="allow", allow_inf_nan=True):
    """Losses on validation pictures."""

    __pydantic_extra__: dict[str, float] = Field(init=False)
    kind: Literal["validation"]
    stage: str


class MetricsRecord(RootModel[StartRecord | StepRecord | ValidationRecord]):
    """One line of the file."""

    root: Annotated[StartRecord | StepRecord | ValidationRecord, Field(discriminator="kind")]

    def document(self) -> dict[str, Any]:
        """As JSON holds it, ``kind`` first."""
        return {"kind": self.root.kind, **self.root.model_dump(exclude_unset=True)}


class MetricsFile:
    """Appends one JSON object per record to ``path``, ``kind`` first.

    ``resume_at`` is the number of steps that a resumed run has behind it: what the file says of later ones, and a line
    torn by a kill, are dropped; 0 starts a new file. ``records`` holds all validations; ``echo`` gets a readable line
    for each of them and for every ``echo_every``-th step. Raises FlasharError where the file to go on with is damaged.
    """

    def __init__(self, path: Path, resume_at: int = 0, echo: TextIO | None = None, echo_every: int = 20) -> None:
        self.path = path
        self.validations: list[dict[str, Any]] = []
        self._echo, self._echo_every = echo, echo_every
        kept = [record for record in read_records(path) if _is_past(record, resume_at)] if resume_at else []
        with atomic_file(path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
        for record in kept:
            if record.pop("kind") == "validation":
                self.validations.append(record)

    def __call__(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "validation":
            self.validations.append(record)
        line = MetricsRecord.model_validate({"kind": kind, **record}).document()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._echo is not None and (kind != "step" or record["step"] % self._echo_every == 0):
            values = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())
            print(f"{kind}: {values}", file=self._echo, flush=True)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, none where there is no file. Raises FlasharError that names line and field."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for number, line in read_lines(path):
        where = f"line {number} of {path}"
        try:
            document = parse_json(decode_text(line, where), where, allow_nan=True)
        except FlasharError:
            if not line.endswith(b"\n"):  # torn by a kill, and so the last
                break
            raise
        records.append(validated(document, MetricsRecord, where, "a record of metrics").document())
    return records


def _is_past(record: dict[str, Any], resume_at: int) -> bool:
    """A step is past once it is done, a validation once the steps before it are."""
    return record["step"] < resume_at if record["kind"] == "step" else record["step"] <= resume_at
