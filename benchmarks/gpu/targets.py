"""What decoding on one H200 in bfloat16 with guidance is to reach, held against the entries of a results.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import ArmReport, BatchReport, BenchReport

Measure = Callable[[list[BenchReport]], tuple[float, str] | None]
GPU, DTYPE = "H200", "bfloat16"
SHARE_OF_FLOORS = 0.9
TOP_KERNELS = 5


@dataclass(frozen=True)
class Target:
    """``measure`` gives the best value and where it was seen, or nothing; it is to be at least or at most ``goal``."""

    what: str
    goal: float
    at_least: bool
    unit: str
    measure: Measure


def summary(entries: Mapping[str, dict[str, Any]]) -> str:
    """A table: each target, what was measured, and whether it is met; then the reports that no target is about."""
    found_reports = dict(bench_reports(entries))
    others = {name: why for name, report in found_reports.items() if (why := what_differs(report))}
    reports = [report for name, report in found_reports.items() if name not in others]
    rows = []
    for target in TARGETS:
        found = target.measure(reports)
        sign = ">=" if target.at_least else "<="
        goal = f"{sign} {target.goal:g} {target.unit}"
        if found is None:
            rows.append([target.what, goal, "-", "not measured", ""])
            continue
        value, where = found
        met = value >= target.goal if target.at_least else value <= target.goal
        rows.append([target.what, goal, f"{value:.4g} {target.unit}", "met" if met else "missed", where])
    failed = [f"{name}: {entry['status']}" for name, entry in entries.items() if entry.get("status") != "ok"]
    lines = [tables.markdown((["target", "goal", "measured", "verdict", "where"], rows), num_text_columns=5)]
    lines.append(f"\nthe targets are for one {GPU} in {DTYPE} with guidance, unquantised")
    lines += [f"left out: {name}, {why}" for name, why in others.items()]
    lines += [f"{name}: {line}" for name, entry in entries.items() if (line := profile_line(entry))]
    return "\n".join(lines + [f"not as it should be: {line}" for line in failed])


def profile_line(entry: dict[str, Any]) -> str | None:
    """What takes the time in a profile, on one line; nothing where the entry is none."""
    report = entry.get("report")
    if entry.get("kind") != "profile" or not report:
        return None
    times = (
        f"{report['model']} {report['grid']} {report['arm']} at batch {report['batch_size']}: "
        f"{report['token_generation_s'] * 1e3:.1f} ms, floor {report['floor_s'] * 1e3:.1f}, "
        f"idle {report['idle_share_unprofiled']:.0%}"
    )
    top = [f"{kernel['share']:.0%} {kernel['name'][:60]}" for kernel in report["kernels"][:TOP_KERNELS]]
    return "; ".join([times, *top])


def bench_reports(entries: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, BenchReport]]:
    """The bench reports by the names of their entries."""
    for name, entry in entries.items():
        if entry.get("kind") == "bench" and entry.get("report"):
            yield name, BenchReport.model_validate(entry["report"])


def what_differs(report: BenchReport) -> str | None:
    """What keeps a report from counting towards the targets, or nothing."""
    settings = report.settings
    machine = report.hardware.gpu or report.hardware.cpu
    if GPU not in machine.split():  # a GH200 is another machine
        return f"measured on {machine}"
    if settings.dtype != DTYPE:
        return f"in {settings.dtype}"
    if settings.quantize is not None:
        return f"{settings.quantize} weights"
    return None if settings.cfg_scale > 1 else "without guidance"


def speedup_over_floors(model: str, grid: str) -> Measure:
    """FlashAR over raster at batch 1, at the level where FlashAR is fastest, as a share of the ratio of the floors."""

    def measure(reports: list[BenchReport]) -> tuple[float, str] | None:
        pairs = [
            (arm_of(batch, ratio.arm), arm_of(batch, ratio.over), ratio)
            for batch in batches(reports, model, grid, 1)
            for ratio in batch.speedups
            if ratio.over.startswith("raster-")
        ]
        if not pairs:
            return None
        flashar, raster, ratio = min(pairs, key=lambda pair: pair[0].token_generation_s.median_s)
        # A slow raster makes a high speed-up, so it is told how far from its floor each arm is.
        arms = " over ".join(f"{arm.name} ({arm.times_floor:.2f} times its floor)" for arm in (flashar, raster))
        where = f"{arms}: {ratio.token_generation:.2f}x, floors {ratio.floor:.2f}x"
        return ratio.token_generation / ratio.floor, where

    return measure


def generation_ms(model: str, grid: str) -> Measure:
    """The fastest FlashAR arm's token generation at batch 1."""

    def measure(reports: list[BenchReport]) -> tuple[float, str] | None:
        arms = [arm for batch in batches(reports, model, grid, 1) for arm in batch.arms if arm.decoder == "flashar"]
        if not arms:
            return None
        best = min(arms, key=lambda arm: arm.token_generation_s.median_s)
        return best.token_generation_s.median_s * 1000, f"{best.name}, {best.times_floor:.2f} times its floor"

    return measure


def over_upstream(model: str, grid: str) -> Measure:
    """The fastest FlashAR arm over the published sampler at batch 1, both of one interleaved run."""

    def measure(reports: list[BenchReport]) -> tuple[float, str] | None:
        ratios = [
            ratio
            for batch in batches(reports, model, grid, 1)
            for ratio in batch.speedups
            if ratio.over == "upstream" and ratio.arm.startswith("flashar-")
        ]
        if not ratios:
            return None
        best = max(ratios, key=lambda ratio: ratio.token_generation)
        return best.token_generation, f"{best.arm} over upstream"

    return measure


def images_per_s(model: str, grid: str) -> Measure:
    """FlashAR's most pictures a second at any batch size."""

    def measure(reports: list[BenchReport]) -> tuple[float, str] | None:
        arms: list[tuple[ArmReport, int]] = [
            (arm, batch.batch_size)
            for batch in batches(reports, model, grid, None)
            for arm in batch.arms
            if arm.decoder == "flashar"
        ]
        if not arms:
            return None
        best, size = max(arms, key=lambda pair: pair[0].images_per_s)
        return best.images_per_s, f"{best.name} at batch {size}, {best.times_floor:.2f} times its floor"

    return measure


def batches(reports: list[BenchReport], model: str, grid: str, batch_size: int | None) -> Iterator[BatchReport]:
    """What was measured of a model on a grid, at one batch size or at all."""
    for report in reports:
        if report.model.name == model:
            for batch in report.batches:
                if batch.grid == grid and batch_size in (None, batch.batch_size):
                    yield batch


def arm_of(batch: BatchReport, name: str) -> ArmReport:
    """The arm of that name."""
    return next(arm for arm in batch.arms if arm.name == name)


XL = "llamagen-xl"
TARGETS = (
    Target("XL 384, speed-up / floors", SHARE_OF_FLOORS, True, "", speedup_over_floors(XL, "24x24")),
    Target("XL 512, speed-up / floors", SHARE_OF_FLOORS, True, "", speedup_over_floors(XL, "32x32")),
    Target("XL 512, token generation", 60, False, "ms", generation_ms(XL, "32x32")),
    Target("XL 512, over upstream's sampler", 22.9, True, "x", over_upstream(XL, "32x32")),
    Target("B 256, best batch", 1500, True, "img/s", images_per_s("llamagen-b", "16x16")),
    Target("L 256, best batch", 700, True, "img/s", images_per_s("llamagen-l", "16x16")),
    Target("XL 256, best batch", 350, True, "img/s", images_per_s(XL, "16x16")),
    Target("XXL 256, best batch", 200, True, "img/s", images_per_s("llamagen-xxl", "16x16")),
)
