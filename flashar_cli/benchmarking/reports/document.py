"""The JSON document of ``flashar bench``. Units stand in the keys; ``benchmarks/bench.schema.json`` is its schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from flashar_cli.benchmarking.reports.old_reports import upgrade
from flashar_cli.config import Config, Count, Sampling, validated
from flashar_cli.decoding.quantize import Scheme
from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file
from flashar_cli.inputs.reading import read_json
from flashar_cli.machine.environment import Hardware, Software
from flashar_cli.machine.launches import Launches
from flashar_cli.machine.rates import Rates
from flashar_cli.machine.timing import quartiles

# The decoders of headlines: one over the other, of raster models and of next-scale models.
FASTER, SLOWER = "flashar", "raster"
HEADLINES = ((FASTER, SLOWER), ("fastvar", "scale"))
BASELINES = tuple(slower for _, slower in HEADLINES)


class Seconds(Config):
    """One duration measured several times."""

    median_s: NonNegativeFloat
    p25_s: NonNegativeFloat
    p75_s: NonNegativeFloat
    raw_s: tuple[NonNegativeFloat, ...]

    @classmethod
    def of(cls, raw_s: Sequence[float]) -> Seconds:
        """Median and quartiles of raw values."""
        low, middle, high = quartiles(raw_s)
        return cls(median_s=middle, p25_s=low, p75_s=high, raw_s=tuple(raw_s))


class ArmReport(Config):
    """One arm at one batch size. Durations are those of the whole batch. What has a default is not in old reports."""

    name: str = Field(description="DECODER-LEVEL, or upstream")
    decoder: str = Field(description="one of ours, or upstream")
    level: str | None = Field(description="level of optimisation; null for upstream")
    forwards_per_image: Count = Field(
        description="serial forwards, the prefix's own included, counted while running: the median where images differ"
    )
    launches: Launches | None = Field(
        None, description="null where unseen; on CUDA at the last batch size of the last grid alone"
    )
    prepare_s: float | None = Field(None, ge=0, description="compiling and capturing, once, before the warm-up")
    token_generation_s: Seconds = Field(description="prefix and decode")
    prefix_s: Seconds
    decode_s: Seconds
    step_s: tuple[NonNegativeFloat, ...] | None = Field(
        None,
        description="of a next-scale model without graphs: medians from the logits of the scale before to each scale's",
    )
    token_decode_s: Seconds | None = Field(description="tokens to pixels; null without a tokenizer")
    images_per_s: PositiveFloat = Field(description="batch size over the median token generation")
    warmup_s: tuple[NonNegativeFloat, ...] = Field(description="whole runs before the measured ones")
    peak_memory_bytes: Count | None = Field(description="held by PyTorch on the device for this arm; null on a CPU")
    read_bytes: Count | None = Field(None, description="weight bytes that must be read for one batch")
    flops: Count | None = Field(None, description="multiplications and additions with weights for one batch")
    read_bytes_per_s: NonNegativeFloat = Field(description="read_bytes over the median token generation")
    share_of_copy: NonNegativeFloat = Field(description="read_bytes_per_s over the copy rate of the same run")
    floor_s: PositiveFloat = Field(description="what the measured rates allow for token generation")
    times_floor: NonNegativeFloat = Field(description="median token generation over floor_s")


class Speedup(Config):
    """How many times as fast one arm is as another."""

    arm: str
    over: str
    token_generation: PositiveFloat = Field(description="ratio of the median token generations")
    with_token_decode: PositiveFloat | None = Field(description="the same with tokens to pixels in both")
    floor: PositiveFloat = Field(description="ratio of the floors")


def headline_of(arms: Sequence[ArmReport]) -> tuple[str, str] | None:
    """The two arms of the headline: at the level, of those that both decoders ran at, at which the faster one's median
    is the lowest.
    """
    for faster, slower in HEADLINES:
        slower_levels = {arm.level for arm in arms if arm.decoder == slower}
        common = [arm for arm in arms if arm.decoder == faster and arm.level in slower_levels]
        if common:
            level = min(common, key=lambda arm: arm.token_generation_s.median_s).level
            return f"{faster}-{level}", f"{slower}-{level}"
    return None


class BatchReport(Config):
    """All arms on one grid at one batch size."""

    grid: str
    batch_size: int = Field(gt=0)
    speedup: float | None = Field(
        gt=0,
        description="flashar over raster, or fastvar over scale, at the common level where the first is fastest",
    )
    speedup_with_token_decode: PositiveFloat | None = Field(description="the same with tokens to pixels in both")
    speedups: tuple[Speedup, ...] = Field(
        description="decoders of one model over each other at each level, every arm over upstream"
    )
    arms: tuple[ArmReport, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> BatchReport:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name among {', '.join(names)}")
        unknown = {name for ratio in self.speedups for name in (ratio.arm, ratio.over)} - set(names)
        if unknown:
            raise ValueError(f"speedups name {', '.join(sorted(unknown))}; the arms are {', '.join(names)}")
        return self


class Subject(Config):
    """What was benched."""

    name: str
    family: str
    weights: str = Field(description="'random weights' or 'sha256:...'")
    grid: str = Field(description="HxW tokens; several with commas between")
    num_parameters: Count
    branch: str | None = Field(description="its layer, depth and gate; null for a next-scale model")
    fastvar: str | None = Field(None, description="what fastvar and truncate leave out")
    branch_added: bool = Field(description="the checkpoint had no branch; a fresh one was added")


class Settings(Sampling):
    """How it was benched, sampling settings included."""

    device: str
    dtype: str
    quantize: Scheme | None = Field(None, description="8-bit weights of blocks and heads; null: all are of the dtype")
    num_threads: Count
    arms: tuple[str, ...] = Field(min_length=1, description="in the order of their turns")
    batch_sizes: tuple[Count, ...]
    repeats: Count
    warmup: Count
    seed: Count
    pixel_dtype: str | None = Field(None, description="in which our arms make pixels; null without a tokenizer")
    num_interop_threads: Count | None = None
    float32_matmul_precision: str | None = None
    tf32: bool | None = Field(None, description="whether float32 products on CUDA may use TensorFloat-32")
    sdpa_backends: tuple[str, ...] | None = Field(
        None, description="kernels of SDPA that PyTorch may choose among on CUDA"
    )
    with_pixels: bool | None = Field(None, description="whether every run made pixels; null in old reports")


class UpstreamReport(Config):
    """The published sampler that ran on the same weights."""

    repository: str = Field("FoundationVision/LlamaGen", description="where it was published, on GitHub")
    commit: str | None = Field(description="of the clone; null where it is no git checkout")
    files_sha256: dict[str, str] = Field(description="of the files that were imported")
    decoder: str = Field(SLOWER, description="ours that decodes in the same order, with the same forwards and floor")
    num_tokens: int = Field(gt=0, description="tokens that both took greedily before anything was timed")
    num_equal_tokens: int = Field(ge=0, description="of those, tokens at which that decoder of ours agrees")


class PixelAgreement(Config):
    """An arm's image against the tokenizer's own of the same tokens, eager, in float32; both in 8 bits a channel."""

    dtype: str = Field(description="in which the arm turns tokens into pixels")
    num_pixels: int = Field(gt=0)
    num_differing_pixels: int = Field(ge=0, description="pixels of which any channel differs")
    max_difference: int = Field(ge=0, le=255, description="largest difference of a channel")
    psnr_db: float | None = Field(ge=0, description="peak signal-to-noise ratio; null where nothing differs")


class Agreement(Config):
    """One arm against the same decoder run eagerly in float32, unquantised, on the same weights: one image."""

    arm: str
    grid: str
    num_cells: int = Field(gt=0)
    greedy_agreement: float | None = Field(
        ge=0,
        le=1,
        description="share of cells with the same argmax, teacher-forced on the reference's greedy tokens; null where "
        "the decoder's steps depend on what is sampled",
    )
    mean_abs_difference: float | None = Field(ge=0, description="of the logits behind it: fused, after guidance")
    max_abs_difference: float | None = Field(ge=0, description="the largest of them")
    drawn_agreement: float = Field(ge=0, le=1, description="share of equal tokens where both decode greedily alone")
    pixels: PixelAgreement | None = Field(None, description="of the reference's tokens; null without a tokenizer")


class BenchReport(Config):
    """The whole document."""

    report_version: Literal[2] = 2
    date: str = Field(description="ISO 8601, UTC")
    command: tuple[str, ...] | None = Field(None, description="the command line")
    variables: dict[str, str] | None = Field(None, description="environment variables that change speed")
    hardware: Hardware
    software: Software
    model: Subject
    settings: Settings
    rates: Rates = Field(description="measured in the same process, before the decoders")
    peak_rss_bytes: Count = Field(description="of the whole process")
    upstream: UpstreamReport | None = None
    agreements: tuple[Agreement, ...] = Field((), description="of each arm with float32, where it was asked for")
    sweep_end: str | None = Field(None, description="why there are no larger batch sizes")
    batches: tuple[BatchReport, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, document: Any) -> Any:
        is_old = isinstance(document, dict) and document.get("report_version") == 1
        return upgrade(document) if is_old else document

    @model_validator(mode="after")
    def _check_batches(self) -> BenchReport:
        places = [(batch.grid, batch.batch_size) for batch in self.batches]
        if len(set(places)) < len(places):
            raise ValueError("two batches have the same grid and batch_size")
        return self


def report_schema() -> dict[str, Any]:
    """The JSON Schema of the document: what ``benchmarks/bench.schema.json`` holds."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **BenchReport.model_json_schema(mode="serialization")}


def read_report(path: Path) -> BenchReport:
    """Reads a document of ``flashar bench``, of this layout or the one before. Raises FlasharError."""
    if not path.exists():
        raise FlasharError(f"there is no file {path}; expected a report of `flashar bench --out FILE.json`")
    document = read_json(path)
    version = document.get("report_version") if isinstance(document, dict) else None
    if type(version) is not int or version not in (1, 2):
        raise FlasharError(
            f"{path} is not a report that this flashar reads: its report_version is {version!r}, "
            f"expected 2 or 1; run `flashar bench` again"
        )
    return validated(document, BenchReport, str(path), "a report of `flashar bench`")


def write_report(report: BenchReport, path: Path) -> None:
    """Writes the document, or nothing."""
    with atomic_file(path) as file:
        file.write((report.model_dump_json(indent=2) + "\n").encode())
