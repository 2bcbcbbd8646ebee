"""The targets for one H200 in bfloat16, decoding with guidance and training, against the entries of a results.json:
python -m benchmarks.gpu.targets RESULTS.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.gpu.results import OK, read_entries
from flashar_cli.benchmarking.arms import UPSTREAM
from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.reports.document import FASTER, SLOWER, ArmReport, BatchReport, BenchReport, headline_of
from flashar_cli.errors import FlasharError

GPU, DTYPE = "H200", "bfloat16"
SHARE_OF_FLOORS = 0.9
TOP_KERNELS = 5


@dataclass(frozen=True)
class Measurements:
    """What counts towards the targets: bench reports, and those of train_rate.py."""

    benches: list[BenchReport]
    trainings: list[dict[str, Any]]


Measure = Callable[[Measurements], tuple[float, str] | None]


@dataclass(frozen=True)
class Target:
    """A goal for the best value; ``measure`` returns that and where it was measured, or None."""

    what: str
    goal: float
    at_least: bool
    unit: str
    measure: Measure


def summary(entries: Mapping[str, dict[str, Any]]) -> str:
    """A table: each target, what was measured, and whether it is met; then the reports that no target is about."""
    benches, unread = bench_reports(entries)
    trainings = dict(training_reports(entries))
    others = unread | {name: why for name, bench in benches.items() if (why := what_differs(bench))}
    others |= {name: why for name, each in trainings.items() if (why := other_machine(each["hardware"], each["dtype"]))}
    counted = Measurements(
        [bench for name, bench in benches.items() if name not in others],
        [training for name, training in trainings.items() if name not in others],
    )
    rows = []
    for target in TARGETS:
        found = target.measure(counted)
        sign = ">=" if target.at_least else "<="
        goal = f"{sign} {target.goal:g} {target.unit}"
        if found is None:
            rows.append([target.what, goal, "-", "not measured", ""])
            continue
        value, where = found
        met = value >= target.goal if target.at_least else value <= target.goal
        rows.append([target.what, goal, f"{value:.4g} {target.unit}", "met" if met else "missed", where])
    failed = [
        f"{name}: {entry['status']} {entry.get('why', '')}".strip()
        for name, entry in entries.items()
        if entry["status"] != OK
    ]
    lines = [tables.markdown((["target", "goal", "measured", "verdict", "where"], rows), num_text_columns=5)]
    lines.append(
        f"\nthe targets are for one {GPU} in {DTYPE}, decoding with guidance, unquantised; times and rates "
        "of decoding are those of the tokens, without turning them into pixels"
    )
    lines += [f"left out: {name}, {why}" for name, why in others.items()]
    lines += [f"{name}: {line}" for name, entry in entries.items() if (line := profile_line(entry))]
    return "\n".join(lines + [f"not as it should be: {line}" for line in failed])


def profile_line(entry: dict[str, Any]) -> str | None:
    """What takes the time in a profile, on one line; None for other entries."""
    report = entry.get("report")
    if entry.get("kind") != "profile" or not report:
        return None
    times = (
        f"{report['model']} {report['grid']} {report['arm']} at batch {report['batch_size']}: "
        f"{report['token_generation_s'] * 1e3:.1f} ms, floor {report['floor_s'] * 1e3:.1f}, "
        f"idle {report['idle_share_unprofiled']:.0%}{', CUT OFF by full buffers' if report.get('truncated') else ''}"
    )
    top = [f"{kernel['share']:.0%} {kernel['name'][:60]}" for kernel in report["kernels"][:TOP_KERNELS]]
    return "; ".join([times, *top])


def bench_reports(entries: Mapping[str, dict[str, Any]]) -> tuple[dict[str, BenchReport], dict[str, str]]:
    """The bench reports by the names of their entries; and the entries that could not be read, with the reason."""
    reports, unread = {}, {}
    for name, entry in entries.items():
        if entry.get("kind") == "bench" and entry.get("report"):
            try:
                reports[name] = BenchReport.model_validate(entry["report"])
            except ValidationError as error:
                unread[name] = f"not a report of flashar bench ({error.error_count()} problems)"
    return reports, unread


def training_reports(entries: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The reports of train_rate.py by the names of their entries."""
    for name, entry in entries.items():
        if entry.get("kind") == "train" and entry.get("report"):
            yield name, entry["report"]


def what_differs(report: BenchReport) -> str | None:
    """Why a report does not count towards the targets, or None."""
    settings = report.settings
    if (why := other_machine(report.hardware.model_dump(), settings.dtype)) is not None:
        return why
    if settings.quantize is not None:
        return f"{settings.quantize} weights"
    return None if settings.cfg_scale > 1 else "without guidance"


def other_machine(hardware: Mapping[str, Any], dtype: str) -> str | None:
    """Why a machine or a dtype does not count, or None."""
    machine = hardware["gpu"] or hardware["cpu"]
    if GPU not in machine.split():  # a GH200 is another machine
        return f"measured on {machine}"
    return None if dtype == DTYPE else f"in {dtype}"


def speedup_over_floors(model: str, grid: str) -> Measure:
    """FlashAR over raster at batch 1, at the level where FlashAR is fastest, as a share of the ratio of the floors."""

    def measure(found: Measurements) -> tuple[float, str] | None:
        pairs = [
            (arm_of(batch, ratio.arm), arm_of(batch, ratio.over), ratio)
            for batch in batches(found.benches, model, grid, 1)
            for ratio in batch.speedups
            if (arm_of(batch, ratio.arm).decoder, arm_of(batch, ratio.over).decoder) == (FASTER, SLOWER)
        ]
        if not pairs:
            return None
        flashar, raster, ratio = min(pairs, key=lambda pair: pair[0].token_generation_s.median_s)
        # A slow raster makes a high speed-up, so the line says how far each arm is from its floor.
        arms = " over ".join(f"{arm.name} ({arm.times_floor:.2f} times its floor)" for arm in (flashar, raster))
        where = f"{arms}: {ratio.token_generation:.2f}x, floors {ratio.floor:.2f}x"
        return ratio.token_generation / ratio.floor, where

    return measure


def speedup(model: str, grid: str) -> Measure:
    """That of the headline at batch 1: both arms at the level at which the faster decoder is fastest."""

    def measure(found: Measurements) -> tuple[float, str] | None:
        ratios = [
            (ratio.token_generation, batch)
            for batch in batches(found.benches, model, grid, 1)
            for ratio in batch.speedups
            if (ratio.arm, ratio.over) == headline_of(batch.arms)
        ]
        if not ratios:
            return None
        best, where = max(ratios, key=lambda pair: pair[0])
        return best, "; ".join(f"{each.arm} over {each.over} {each.token_generation:.2f}x" for each in where.speedups)

    return measure


def generation_ms(model: str, grid: str) -> Measure:
    """The fastest FlashAR arm's token generation at batch 1."""

    def measure(found: Measurements) -> tuple[float, str] | None:
        arms = [arm for batch in batches(found.benches, model, grid, 1) for arm in batch.arms if arm.decoder == FASTER]
        if not arms:
            return None
        best = min(arms, key=lambda arm: arm.token_generation_s.median_s)
        return best.token_generation_s.median_s * 1000, f"{best.name}, {best.times_floor:.2f} times its floor"

    return measure


def over_upstream(model: str, grid: str) -> Measure:
    """The fastest FlashAR arm over the published sampler at batch 1, both of one interleaved run."""

    def measure(found: Measurements) -> tuple[float, str] | None:
        ratios = [
            ratio
            for batch in batches(found.benches, model, grid, 1)
            for ratio in batch.speedups
            if ratio.over == UPSTREAM and arm_of(batch, ratio.arm).decoder == FASTER
        ]
        if not ratios:
            return None
        best = max(ratios, key=lambda ratio: ratio.token_generation)
        return best.token_generation, f"{best.arm} over upstream"

    return measure


def images_per_s(model: str, grid: str) -> Measure:
    """FlashAR's most images a second at any batch size."""

    def measure(found: Measurements) -> tuple[float, str] | None:
        arms: list[tuple[ArmReport, int]] = [
            (arm, batch.batch_size)
            for batch in batches(found.benches, model, grid, None)
            for arm in batch.arms
            if arm.decoder == FASTER
        ]
        if not arms:
            return None
        best, size = max(arms, key=lambda pair: pair[0].images_per_s)
        pixels = "pixels not measured"
        if best.token_decode_s is not None:
            seconds = best.token_generation_s.median_s + best.token_decode_s.median_s
            pixels = f"{size / seconds:.4g} with pixels"
        return best.images_per_s, f"{best.name} at batch {size}, {best.times_floor:.2f} times its floor; {pixels}"

    return measure


def share_of_matmul(model: str) -> Measure:
    """The best training arm's operations a second, as a share of a plain matrix product's on the same machine."""

    def measure(found: Measurements) -> tuple[float, str] | None:
        reports = [report for report in found.trainings if report["model"] == model]
        arms = [arm for report in reports for arm in report["arms"] if "share_of_matmul" in arm]
        if not arms:
            return None
        best = max(arms, key=lambda arm: arm["share_of_matmul"])
        compiled = ", compiled" if best["compile"] else ""
        where = f"{best['attention']}{compiled}, {best['micro_batch_size']} images, {best['images_per_s']:.4g} a second"
        return best["share_of_matmul"], where

    return measure


def batches(reports: list[BenchReport], model: str, grid: str, batch_size: int | None) -> Iterator[BatchReport]:
    """What was measured of a model on a grid, at one batch size or at all sizes."""
    for report in reports:
        if report.model.name == model:
            for batch in report.batches:
                if batch.grid == grid and batch_size in (None, batch.batch_size):
                    yield batch


def arm_of(batch: BatchReport, name: str) -> ArmReport:
    """The arm of that name."""
    return next(arm for arm in batch.arms if arm.name == name)


XL, EMU = "llamagen-xl", "emu3.5-image"
TARGETS = (
    Target("XL 384, speed-up / floors", SHARE_OF_FLOORS, True, "", speedup_over_floors(XL, "24x24")),
    Target("XL 512, speed-up / floors", SHARE_OF_FLOORS, True, "", speedup_over_floors(XL, "32x32")),
    Target("XL 512, token generation", 60, False, "ms", generation_ms(XL, "32x32")),
    Target("XL 512, over upstream's sampler", 22.9, True, "x", over_upstream(XL, "32x32")),
    Target("B 256, best batch", 1500, True, "img/s", images_per_s("llamagen-b", "16x16")),
    Target("L 256, best batch", 700, True, "img/s", images_per_s("llamagen-l", "16x16")),
    Target("XL 256, best batch", 350, True, "img/s", images_per_s(XL, "16x16")),
    Target("XXL 256, best batch", 200, True, "img/s", images_per_s("llamagen-xxl", "16x16")),
    Target("34 B 512, token generation", 1250, False, "ms", generation_ms(EMU, "32x32")),
    Target("Infinity-2B 1024, FastVAR over all scales", 2.7, True, "x", speedup("infinity-2b", "64x64")),
    # Half of what a product reaches by itself: about 40 % of the rate in the data sheet.
    Target("XL 384, training / product", 0.5, True, "", share_of_matmul(XL)),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what was measured, held against the targets")
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    try:
        print(summary(read_entries(parser.parse_args(argv).results)))
    except FlasharError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
