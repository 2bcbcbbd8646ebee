"""Metrics of a run, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import Field, RootModel

from flashar_cli.config import Config, validated
from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file
from flashar_cli.inputs.reading import decode_text, parse_json, read_lines

ECHO_EVERY = 20  # steps
Record = dict[str, Any]  # as JSON holds it
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int | float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Stamped(Config):
    """Fields of every record: ``step``, the number of steps done, or of a step record its number from 0 on; the time in
    seconds since 1970 and the peak memory, where a run records them.
    """

    step: Count
    wall_time: NotNegative | None = None
    peak_memory_bytes: Count | None = None


class StartRecord(Stamped):
    """A run begins or is resumed: what it will do, and on how fast a machine."""

    kind: Literal["start"]
    stage_steps: dict[str, Annotated[int, Field(gt=0)]] = Field(min_length=1)
    batch_size: Annotated[int, Field(gt=0)]
    flops_per_image: dict[str, Positive]
    matmul_flops_per_s: Positive
    num_processes: Annotated[int, Field(gt=0)]


class StepRecord(Stamped, extra="allow", allow_inf_nan=True):
    """An optimizer step with its losses, which may be infinite or NaN."""

    __pydantic_extra__: dict[str, float] = Field(init=False)
    kind: Literal["step"]
    stage: str
    lr: NotNegative
    images_per_s: NotNegative


class ValidationRecord(Stamped, extra="allow", allow_inf_nan=True):
    """Losses on validation images."""

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

    ``resume_at`` is the number of steps that a resumed run has done: later records, and a line that a kill has cut off,
    are dropped; 0 starts a new file. ``validations`` holds all records of that kind; ``echo`` gets a readable line for
    each of them and for every 20th step. Raises FlasharError where the file to resume is damaged.
    """

    def __init__(self, path: Path, resume_at: int = 0, echo: TextIO | None = None) -> None:
        self.path = path
        self.validations: list[dict[str, Any]] = []
        self._echo = echo
        # ``step`` is a step's own number, and of other records the number of steps done.
        past = read_records(path) if resume_at else []
        kept = [record for record in past if record["step"] < resume_at + (record["kind"] != "step")]
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
        if self._echo is not None and (kind != "step" or record["step"] % ECHO_EVERY == 0):
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
            if not line.endswith(b"\n"):  # cut off by a kill: the last line
                break
            raise
        records.append(validated(document, MetricsRecord, where, "a record of metrics").document())
    return records
