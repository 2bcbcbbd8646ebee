"""The JSON document of ``flashar bench``. Units stand in the keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from flashar_cli.benchmarking.timing import quartiles
from flashar_cli.config import Config, explain
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file

REPORT_VERSION = 1


class Seconds(Config):
    """One duration measured several times."""

    median_s: float = Field(ge=0)
    p25_s: float = Field(ge=0)
    p75_s: float = Field(ge=0)
    raw_s: tuple[float, ...]

    @classmethod
    def of(cls, raw_s: Sequence[float]) -> Seconds:
        """Median and quartiles of raw values."""
        low, middle, high = quartiles(raw_s)
        return cls(median_s=middle, p25_s=low, p75_s=high, raw_s=tuple(raw_s))


class ArmReport(Config):
    """One decoder at one batch size. Durations are those of the whole batch."""

    forwards_per_image: int = Field(description="serial forwards, the prefix's own included, counted while running")
    token_generation_s: Seconds = Field(description="prefix and decode")
    prefix_s: Seconds
    decode_s: Seconds
    token_decode_s: Seconds | None = Field(description="tokens to pixels; null without a tokenizer")
    images_per_s: float = Field(description="batch size over the median token generation")
    warmup_s: tuple[float, ...] = Field(description="whole runs before the measured ones")
    peak_memory_bytes: int | None = Field(description="held by PyTorch on the device; null on a CPU")
    read_bytes_per_s: float = Field(description="weight bytes that must be read, over the median token generation")
    share_of_copy: float = Field(description="read_bytes_per_s over the copy rate of the same run")
    floor_s: float = Field(description="what the measured rates allow for token generation")
    times_floor: float = Field(description="median token generation over floor_s")


class BatchReport(Config):
    """Both decoders at one batch size."""

    batch_size: int = Field(gt=0)
    speedup: float = Field(gt=0, description="median token generation, raster over flashar")
    speedup_with_token_decode: float | None = Field(description="the same with tokens to pixels in both")
    raster: ArmReport
    flashar: ArmReport


class Hardware(Config):
    """What it ran on."""

    cpu: str
    num_cpu_cores: int
    gpu: str | None


class Software(Config):
    """What it ran with."""

    flashar: str
    torch: str
    python: str
    cuda: str | None
    commit: str | None


class Subject(Config):
    """What was benched."""

    name: str
    family: str
    weights: str = Field(description="'random weights' or 'sha256:...'")
    grid: str
    num_parameters: int
    branch: str = Field(description="its layer, depth and gate")
    branch_added: bool = Field(description="the checkpoint had no branch; a fresh one was added")


class Settings(Config):
    """How it was benched."""

    device: str
    dtype: str
    num_threads: int
    optimisation: Literal["eager"]
    batch_sizes: tuple[int, ...]
    repeats: int
    warmup: int
    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float
    seed: int


class RatesReport(Config):
    """Measured in the same process, before the decoders."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


class BenchReport(Config):
    """The whole document."""

    report_version: Literal[1] = 1
    date: str = Field(description="ISO 8601, UTC")
    hardware: Hardware
    software: Software
    model: Subject
    settings: Settings
    rates: RatesReport
    peak_rss_bytes: int = Field(description="of the whole process")
    batches: tuple[BatchReport, ...] = Field(min_length=1)


def read_report(path: Path) -> BenchReport:
    """Reads a document of ``flashar bench``. Raises FlasharError that says what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlasharError(f"there is no file {path}; expected a report of `flashar bench --out FILE.json`") from None
    except OSError as error:
        raise FlasharError(f"{path} could not be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FlasharError(f"{path} is not valid JSON ({error}); expected a report of `flashar bench`") from None
    version = document.get("report_version") if isinstance(document, dict) else None
    if version != REPORT_VERSION:
        raise FlasharError(
            f"{path} is not a report that this flashar reads: its report_version is {version!r}, "
            f"expected {REPORT_VERSION}; run `flashar bench` again"
        )
    try:
        return BenchReport.model_validate(document)
    except ValidationError as error:
        raise FlasharError(f"{path} is not a report of `flashar bench`: {explain(error)}") from None


def write_report(report: BenchReport, path: Path) -> None:
    """Writes the document, or nothing."""
    with atomic_file(path) as file:
        file.write((report.model_dump_json(indent=2) + "\n").encode())
