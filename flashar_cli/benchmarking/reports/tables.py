"""The numbers of a bench as rows of text, for terminal, Markdown and HTML alike; and those that others published."""

from __future__ import annotations

import string
from collections.abc import Sequence

from flashar_cli.benchmarking.arms import UPSTREAM, split_arm
from flashar_cli.benchmarking.published import PUBLICATIONS
from flashar_cli.benchmarking.reports.document import (
    BASELINES,
    Agreement,
    ArmReport,
    BatchReport,
    BenchReport,
    PixelAgreement,
)

Table = tuple[list[str], list[list[str]]]


def arms(report: BenchReport) -> Table:
    """One row for each arm on each grid at each batch size."""
    on_gpu, with_grid = report.hardware.gpu is not None, len({batch.grid for batch in report.batches}) > 1
    header = ["batch", "arm", "forwards", "launches", "tokens ms", "quartiles ms", "pixels ms", "img/s", "x floor"]
    header = ["grid", *header] if with_grid else header
    header += ["of copy", *(["peak GiB"] if on_gpu else []), "speed-up"]
    rows = []
    for batch in report.batches:
        for arm in batch.arms:
            place = [batch.grid, str(batch.batch_size)] if with_grid else [str(batch.batch_size)]
            peak = [f"{(arm.peak_memory_bytes or 0) / 2**30:.2f}"] if on_gpu else []
            rows.append([*place, arm.name, *_numbers(arm), *peak, _over_raster(batch, arm)])
    return header, rows


def _over_raster(batch: BatchReport, arm: ArmReport) -> str:
    own = [ratio for ratio in batch.speedups if ratio.arm == arm.name and split_arm(ratio.over)[0] in BASELINES]
    return f"{own[0].token_generation:.2f}" if own else ""


def _numbers(arm: ArmReport) -> list[str]:
    tokens, pixels = arm.token_generation_s, arm.token_decode_s
    return [
        str(arm.forwards_per_image),
        "-" if arm.launches is None else f"{'>' if arm.launches.truncated else ''}{arm.launches.count}",
        f"{tokens.median_s * 1000:.1f}",
        f"{tokens.p25_s * 1000:.1f}-{tokens.p75_s * 1000:.1f}",
        "-" if pixels is None else f"{pixels.median_s * 1000:.1f}",
        f"{arm.images_per_s:.2f}",
        f"{arm.times_floor:.1f}",
        f"{arm.share_of_copy:.0%}",
    ]


def speedups(report: BenchReport) -> Table:
    """Ratios of two arms, the ratios of their floors, and how far each arm is from its own floor."""
    header = ["grid", "batch", "arm", "over", "tokens", "with pixels", "floors", "arm x floor", "over x floor"]
    rows = []
    for batch in report.batches:
        times_floor = {arm.name: f"{arm.times_floor:.1f}" for arm in batch.arms}
        for ratio in batch.speedups:
            pixels = "-" if ratio.with_token_decode is None else f"{ratio.with_token_decode:.2f}"
            numbers = [f"{ratio.token_generation:.2f}", pixels, f"{ratio.floor:.2f}"]
            place = [batch.grid, str(batch.batch_size), ratio.arm, label(ratio.over)]
            rows.append([*place, *numbers, times_floor[ratio.arm], times_floor[ratio.over]])
    return header, rows


STEPS_TITLE = "milliseconds of each scale"


def steps(report: BenchReport) -> Table:
    """The milliseconds of each scale of next-scale models; no rows for other models and graphs."""
    timed = [(batch, arm, arm.step_s) for batch in report.batches for arm in batch.arms if arm.step_s is not None]
    count = max((len(seconds) for *_, seconds in timed), default=0)
    rows = []
    for batch, arm, seconds in timed:
        cells = [f"{1000 * each:.1f}" for each in seconds] + ["-"] * (count - len(seconds))
        rows.append([batch.grid, str(batch.batch_size), arm.name, *cells])
    return ["grid", "batch", "arm", *map(str, range(count))], rows


UPSTREAM_RUNS = "eager, uncompiled"
SPEEDUP_REMARK = (
    "floors: the ratio of the two floors, which is no ceiling: a ratio above it means that the slower arm is further "
    "from its own floor (over x floor) than the faster one (arm x floor)"
)
UPSTREAM_REMARK = f"upstream: the published sampler, {UPSTREAM_RUNS}: the --compile of its scripts is not applied"


def label(arm: str) -> str:
    """The name of an arm that others are compared with; upstream's does not say how it runs, so that is added."""
    return f"{arm} ({UPSTREAM_RUNS})" if arm == UPSTREAM else arm


def agreements(found: Sequence[Agreement]) -> Table:
    """How close each arm is to float32, in cells, in logits, and in pixels where there are any."""
    with_pixels = any(arm.pixels is not None for arm in found)
    header = ["arm", "same argmax", "mean difference", "largest difference", "same drawn"]
    header += ["pixels in", "differ", "by up to", "PSNR dB"] if with_pixels else []
    rows = []
    for arm in found:
        same, drawn = (
            "-" if share is None else f"{round(share * arm.num_cells)} of {arm.num_cells}"
            for share in (arm.greedy_agreement, arm.drawn_agreement)
        )
        differences = (arm.mean_abs_difference, arm.max_abs_difference)
        logits = ["-" if difference is None else f"{difference:.2g}" for difference in differences]
        rows.append([arm.arm, same, *logits, drawn, *(_pixel_agreement(arm.pixels) if with_pixels else [])])
    return header, rows


def _pixel_agreement(pixels: PixelAgreement | None) -> list[str]:
    if pixels is None:
        return ["-"] * 4
    psnr = "-" if pixels.psnr_db is None else f"{pixels.psnr_db:.1f}"
    share = f"{pixels.num_differing_pixels / pixels.num_pixels:.2%}"
    return [pixels.dtype, share, f"{pixels.max_difference} of 255", psnr]


AGREEMENT_TITLE = "agreement with float32, eager, unquantised"
AGREEMENT_REMARK = (
    "same argmax and differences: of guided logits, teacher-forced on float32's greedy tokens of one image; "
    "same drawn: tokens where both decode greedily alone; pixels: of float32's tokens, 8 bits a channel"
)


def floors(report: BenchReport) -> Table:
    """What each arm can't do without, and how far it is from that."""
    header = ["grid", "batch", "arm", "forwards", "reads GB", "computes TFLOP", "floor ms", "measured ms", "x floor"]
    rows = []
    for batch in report.batches:
        for arm in batch.arms:
            work = ["-" if n is None else short(n / unit) for n, unit in ((arm.read_bytes, 1e9), (arm.flops, 1e12))]
            times = [short(seconds * 1000) for seconds in (arm.floor_s, arm.token_generation_s.median_s)]
            place = [batch.grid, str(batch.batch_size), arm.name]
            rows.append([*place, str(arm.forwards_per_image), *work, *times, f"{arm.times_floor:.1f}"])
    return header, rows


def title(report: BenchReport) -> str:
    """What was benched and where, on one line."""
    settings, machine = report.settings, report.hardware
    where = machine.gpu or f"{machine.cpu}, {settings.num_threads} thread{'s' if settings.num_threads > 1 else ''}"
    weights = f" with {settings.quantize} weights" if settings.quantize else ""
    pixels = ", tokens alone: no pixels" if settings.with_pixels is False else ""
    return (
        f"{report.model.name} {report.model.grid}, {settings.dtype}{weights}, guidance {settings.cfg_scale:g}, "
        f"{where}{pixels}"
    )


def remarks(report: BenchReport) -> list[str]:
    """How to read the numbers, and what else the bench found."""
    rates, settings = report.rates, report.settings
    in_dtype = "" if settings.pixel_dtype is None else f" in {settings.pixel_dtype}"
    turns = " ".join(string.ascii_uppercase[: len(settings.arms)])
    lines = [
        f"measured here: copy {rates.copy_bytes_per_s / 1e9:.1f} GB/s, "
        f"matrix product {rates.matmul_flops_per_s / 1e12:.2f} TFLOP/s; tokens = prefix and all steps; "
        f"pixels = tokens to image{in_dtype}; medians over {settings.repeats} x {turns}"
    ]
    if report.upstream is not None:
        same, total = report.upstream.num_equal_tokens, report.upstream.num_tokens
        sampler = f"upstream's sampler ({report.upstream.repository}; {UPSTREAM_RUNS})"
        lines.append(
            f"{sampler} and our {report.upstream.decoder} decoder sampled {same} of {total} greedy tokens alike"
        )
    if report.sweep_end is not None:
        lines.append(f"the sweep of batch sizes ended: {report.sweep_end}")
    return lines


def short(number: float) -> str:
    """Three digits, or all of a whole number that has more."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def markdown(table: Table, num_text_columns: int = 1) -> str:
    """A Markdown table; columns after the first few hold numbers."""
    header, rows = table
    rule = ["---" if index < num_text_columns else "--:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


# The ImageNet 256x256 table (16x16 tokens) of FlashAR, arXiv 2605.09430. By method: where its images a second were
# measured, and by size the FID and images a second.
A100, NOT_STATED = "one A100, largest batch, guidance 2", "not stated"
PUBLISHED: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "LlamaGen, raster": (A100, {"b": (5.46, 117.9), "l": (3.80, 47.1), "xl": (3.39, 23.7), "xxl": (3.09, 14.1)}),
    "NAR": (A100, {"b": (4.65, 419.7), "l": (3.06, 195.4), "xl": (2.70, 98.1), "xxl": (2.58, 56.9)}),
    "BlockDiffusion": (NOT_STATED, {"b": (5.91, 186.3), "l": (4.55, 103.2), "xl": (4.13, 41.7), "xxl": (3.78, 26.8)}),
    "FlashAR": (NOT_STATED, {"b": (4.68, 447.2), "l": (3.16, 224.7), "xl": (2.94, 109.3), "xxl": (2.79, 63.4)}),
}
PUBLISHED_REMARK = "Copied from the source named, not measured here; other hardware, other batch sizes."


def published(name: str) -> Table:
    """What is published of the size that a preset's name ends in, e.g. ``llamagen-xl``; no rows for other models."""
    header = ["method", "size", "FID", "img/s", "measured on", "source"]
    family, _, size = name.rpartition("-")
    rows = [
        [method, size.upper(), f"{fid:.2f}", f"{speed:.1f}", hardware, "FlashAR, arXiv 2605.09430"]
        for method, (hardware, sizes) in PUBLISHED.items()
        for fid, speed in ([sizes[size]] if family in PUBLICATIONS and size in sizes else [])
    ]
    return header, rows
