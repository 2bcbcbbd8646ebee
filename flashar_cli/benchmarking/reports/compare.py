"""Two bench reports side by side: what moved, and whether something became worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from flashar_cli.benchmarking.reports.document import BatchReport, BenchReport
from flashar_cli.config import Config
from flashar_cli.errors import FlasharError

# Weights of another training run are as fast; versions are what one compares.
MODEL_KEYS = ("name", "family", "grid", "num_parameters", "branch")
HARDWARE_KEYS = ("cpu", "num_cpu_cores", "cpu_features", "gpu")
# Without --threads these follow the number of cores, so they say which machine it was.
MACHINE_SETTINGS = ("num_threads", "num_interop_threads")
# An arm more does no harm, and one that is gone is a change of its own.
UNCOMPARED_SETTINGS = ("arms", *MACHINE_SETTINGS)
# An old report can't name these and is known to have had their default.
NEW_SETTINGS = ("quantize", "cfg_interval")
# Another version of PyTorch may start a few operators more or less; forwards are exact.
TOLERANCES = {"forwards": 0.0, "launches": 0.01}

Gate = Literal["all", "ratios"]


Verdict = Literal["same", "better", "worse", "lower", "missing"]
FAILURES: tuple[Verdict, ...] = ("worse", "missing")


@dataclass(frozen=True)
class Change:
    """One number of the old report, and what became of it. ``change`` is relative to the old one; ``new`` and
    ``change`` are None where the new report lacks the number, which is ``missing``. ``lower`` is a speed-up that fell
    while the faster arm kept its distance from its floor. A change that does not gate is shown but nothing fails
    because of it.
    """

    grid: str
    batch_size: int
    what: str
    old: float
    new: float | None
    unit: str
    change: float | None
    verdict: Verdict
    gates: bool = True

    @property
    def fails(self) -> bool:
        """Whether a gate is to fail because of it."""
        return self.gates and self.verdict in FAILURES


@dataclass(frozen=True)
class _Number:
    """``times_floor`` is that of the arm which a speed-up is about."""

    value: float
    unit: str
    times_floor: float | None = None


def differences(old: BenchReport, new: BenchReport, gate: Gate = "all") -> list[str]:
    """What keeps two reports from being comparable: other settings, another model, no arm in common, and other hardware
    where times are judged.
    """
    found = hardware_changes(old, new) if gate == "all" else []
    settings = _differing(old.settings, new.settings)
    found += [f"{key}: {a} / {b}" for key, a, b in settings if key not in UNCOMPARED_SETTINGS]
    if not set(old.settings.arms) & set(new.settings.arms):
        found.append(f"arms: {', '.join(old.settings.arms)} / {', '.join(new.settings.arms)}")
    found += [f"model {key}: {a} / {b}" for key, a, b in _differing(old.model, new.model) if key in MODEL_KEYS]
    return found


def hardware_changes(old: BenchReport, new: BenchReport) -> list[str]:
    """Other processors or GPUs, or another number of threads, which follows from them."""
    found = [line for line in _differing(old.hardware, new.hardware) if line[0] in HARDWARE_KEYS]
    found += [line for line in _differing(old.settings, new.settings) if line[0] in MACHINE_SETTINGS]
    return [f"{key}: {a} / {b}" for key, a, b in found]


def version_changes(old: BenchReport, new: BenchReport) -> list[str]:
    """Versions, commit and weights that differ; reports may be compared across them."""
    found = [f"{key}: {a} -> {b}" for key, a, b in _differing(old.software, new.software)]
    return found + [f"{key}: {a} -> {b}" for key, a, b in _differing(old.model, new.model) if key == "weights"]


def compare(
    old: BenchReport, new: BenchReport, tolerance: float, allow_different: bool = False, gate: Gate = "all"
) -> list[Change]:
    """Every speed-up, time and count of the old report beside the new one's; those that only the new report has are
    left out. A change within ``tolerance`` (0.05: 5 %) is ``same``; forwards and launches, which are no measurements,
    have tolerances of their own. A speed-up that fell is ``worse`` only where the faster arm also takes more times its
    floor than before: the floor is made of rates of the same run, so this holds across machines. With the gate
    ``ratios`` times are shown and not judged by: those of a noisy machine say little, while ratios of interleaved runs
    hold. A number that is ``missing`` gates always.

    Raises FlasharError where the reports are not comparable, unless ``allow_different``, and where no grid with a batch
    size is common to both.
    """
    different = differences(old, new, gate)
    if different and not allow_different:
        raise FlasharError(
            f"the reports are not comparable ({'; '.join(different)}); "
            "run `flashar bench` the same way on the same machine, or pass --allow-different"
        )
    pairs = _pairs(old, new)
    if not any(new_batch for _, new_batch in pairs):
        raise FlasharError("the reports have no batch size in common; bench both with the same --batch-sizes")
    return [change for old_batch, new_batch in pairs for change in _changes(old_batch, new_batch, tolerance, gate)]


def _pairs(old: BenchReport, new: BenchReport) -> list[tuple[BatchReport, BatchReport | None]]:
    """Each batch of the old report with that of the new one on the same grid. Reports of one grid each are compared by
    batch size even where --allow-different lets the grids differ.
    """
    one_grid_each = all(len({batch.grid for batch in report.batches}) == 1 for report in (old, new))
    if one_grid_each:
        sizes = {batch.batch_size: batch for batch in new.batches}
        return [(batch, sizes.get(batch.batch_size)) for batch in old.batches]
    places = {(batch.grid, batch.batch_size): batch for batch in new.batches}
    return [(batch, places.get((batch.grid, batch.batch_size))) for batch in old.batches]


def _changes(old: BatchReport, new: BatchReport | None, tolerance: float, gate: Gate) -> Iterator[Change]:
    with_level = _names_levels(old, old if new is None else new)
    after = {} if new is None else _numbers(new, with_level)
    for what, before in _numbers(old, with_level).items():
        number = after.get(what)
        place = (old.grid, old.batch_size, what, before.value)
        if number is None:
            yield Change(*place, None, before.unit, None, "missing")
            continue
        verdict = _verdict(before, number, TOLERANCES.get(before.unit, tolerance))
        change = _growth(before.value, number.value)
        yield Change(*place, number.value, before.unit, change, verdict, gate == "all" or before.unit != "s")


def _verdict(before: _Number, after: _Number, allowed: float) -> Verdict:
    growth = _growth(before.value, after.value) * (-1 if before.unit == "x" else 1)
    if -allowed <= growth <= allowed:
        return "same"
    if growth < 0:
        return "better"
    if before.times_floor is None or after.times_floor is None:
        return "worse"
    return "worse" if _growth(before.times_floor, after.times_floor) > allowed else "lower"


def _growth(before: float, after: float) -> float:
    return after / before - 1 if before else float(after > 0)


def _names_levels(old: BatchReport, new: BatchReport) -> bool:
    """Whether arms are told apart by their level: not where both reports have one and the same. Nor where each has one
    and no arm is in common, which only --allow-different compares: then decoders are compared across levels.
    """
    before, after = ({arm.level for arm in batch.arms if arm.level} for batch in (old, new))
    in_common = {arm.name for arm in old.arms} & {arm.name for arm in new.arms}
    return max(len(before), len(after)) > 1 or (before != after and bool(in_common))


def _numbers(batch: BatchReport, with_level: bool) -> Mapping[str, _Number]:
    """Numbers by what they are."""
    labels = {arm.name: arm.name if with_level else arm.decoder for arm in batch.arms}
    times_floor = {arm.name: arm.times_floor for arm in batch.arms}
    numbers = {}
    for ratio in batch.speedups:
        pair = f"{labels[ratio.arm]} over {labels[ratio.over]}"
        what = "speedup" if pair == "flashar over raster" else f"speedup {pair}"
        numbers[what] = _Number(ratio.token_generation, "x", times_floor[ratio.arm])
    for arm in batch.arms:
        label = labels[arm.name]
        numbers[f"{label} tokens"] = _Number(arm.token_generation_s.median_s, "s")
        if arm.token_decode_s is not None:
            numbers[f"{label} token decode"] = _Number(arm.token_decode_s.median_s, "s")
        numbers[f"{label} forwards"] = _Number(arm.forwards_per_image, "forwards")
        if arm.launches is not None and not arm.launches.truncated:
            numbers[f"{label} {arm.launches.unit}"] = _Number(arm.launches.count, "launches")
    return numbers


def _differing(old: Config, new: Config) -> Iterator[tuple[str, object, object]]:
    """Keys that both reports hold, an older one fewer, with values that differ."""
    before, after = old.model_dump(), new.model_dump()
    both = (old.model_fields_set & new.model_fields_set) | set(NEW_SETTINGS)
    return ((key, before[key], after[key]) for key in before if key in both and before[key] != after[key])
