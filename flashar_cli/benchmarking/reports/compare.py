"""Two bench reports side by side: what moved, and whether something became worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flashar_cli.benchmarking.reports.document import BatchReport, BenchReport
from flashar_cli.config import Config
from flashar_cli.errors import FlasharError

# Weights of another training run are as fast; versions are what one compares.
MODEL_KEYS = ("name", "family", "grid", "num_parameters", "branch")
HARDWARE_KEYS = ("cpu", "num_cpu_cores", "gpu")
# Arms that only one report has are left out, so they do no harm.
UNCOMPARED_SETTINGS = ("arms",)
# An old report can't name these and is known to have had their default.
NEW_SETTINGS = ("quantize",)
# Another version of PyTorch may start a few operators more or less; forwards are exact.
TOLERANCES = {"forwards": 0.0, "launches": 0.01}

Gate = Literal["all", "ratios"]


@dataclass(frozen=True)
class Change:
    """One number in both reports. ``change`` is relative to the old one; ``verdict`` is same, better or worse. One that
    does not gate is shown but nothing fails because of it.
    """

    grid: str
    batch_size: int
    what: str
    old: float
    new: float
    unit: str
    change: float
    verdict: str
    gates: bool = True


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
    """Other processors or GPUs."""
    return [f"{key}: {a} / {b}" for key, a, b in _differing(old.hardware, new.hardware) if key in HARDWARE_KEYS]


def version_changes(old: BenchReport, new: BenchReport) -> list[str]:
    """Versions, commit and weights that differ; reports may be compared across them."""
    found = [f"{key}: {a} -> {b}" for key, a, b in _differing(old.software, new.software)]
    return found + [f"{key}: {a} -> {b}" for key, a, b in _differing(old.model, new.model) if key == "weights"]


def compare(
    old: BenchReport, new: BenchReport, tolerance: float, allow_different: bool = False, gate: Gate = "all"
) -> list[Change]:
    """Every speed-up, time and count that both reports hold. A change within ``tolerance`` (0.05: 5 %) is ``same``;
    forwards and launches, which are no measurements, have tolerances of their own. With the gate ``ratios`` times are
    shown and not judged by: those of a noisy machine say little, while ratios of interleaved runs hold.

    Raises FlasharError where the reports are not comparable, unless ``allow_different``, and where no grid with a batch
    size is common to both.
    """
    different = differences(old, new, gate)
    if different and not allow_different:
        raise FlasharError(
            f"the reports are not comparable ({'; '.join(different)}); "
            "run `flashar bench` the same way on the same machine, or pass --allow-different"
        )
    new_batches = {(batch.grid, batch.batch_size): batch for batch in new.batches}
    places = ((batch, (batch.grid, batch.batch_size)) for batch in old.batches)
    pairs = [(batch, new_batches[place]) for batch, place in places if place in new_batches]
    # Reports of one grid are compared by batch size even where --allow-different lets the grids differ.
    if not pairs and len({batch.grid for batch in (*old.batches, *new.batches)}) == 2:
        sizes = {batch.batch_size: batch for batch in new.batches}
        pairs = [(batch, sizes[batch.batch_size]) for batch in old.batches if batch.batch_size in sizes]
    if not pairs:
        raise FlasharError("the reports have no batch size in common; bench both with the same --batch-sizes")
    return [change for old_batch, new_batch in pairs for change in _changes(old_batch, new_batch, tolerance, gate)]


def _changes(old: BatchReport, new: BatchReport, tolerance: float, gate: Gate) -> Iterator[Change]:
    names = {arm.name for arm in old.arms} & {arm.name for arm in new.arms}
    levels = {arm.level for arm in old.arms if arm.name in names and arm.level}
    old_numbers, new_numbers = (_numbers(batch, with_level=len(levels) > 1) for batch in (old, new))
    for (what, unit), before in old_numbers.items():
        if (what, unit) not in new_numbers:
            continue
        after = new_numbers[what, unit]
        change = after / before - 1 if before else float(after > 0)
        allowed = TOLERANCES.get(unit, tolerance)
        growth = -change if unit == "x" else change
        verdict = "worse" if growth > allowed else "better" if growth < -allowed else "same"
        gates = gate == "all" or unit != "s"
        yield Change(old.grid, old.batch_size, what, before, after, unit, change, verdict, gates)


def _numbers(batch: BatchReport, with_level: bool) -> dict[tuple[str, str], float]:
    """Numbers by what they are and their unit; a level is only named where there are several."""
    labels = {arm.name: arm.name if with_level else arm.decoder for arm in batch.arms}
    numbers = {}
    for ratio in batch.speedups:
        pair = f"{labels[ratio.arm]} over {labels[ratio.over]}"
        numbers["speedup" if pair == "flashar over raster" else f"speedup {pair}", "x"] = ratio.token_generation
    for arm in batch.arms:
        label = labels[arm.name]
        numbers[f"{label} tokens", "s"] = arm.token_generation_s.median_s
        if arm.token_decode_s is not None:
            numbers[f"{label} token decode", "s"] = arm.token_decode_s.median_s
        numbers[f"{label} forwards", "forwards"] = arm.forwards_per_image
        if arm.launches is not None:
            numbers[f"{label} {arm.launches.unit}", "launches"] = arm.launches.count
    return numbers


def _differing(old: Config, new: Config) -> Iterator[tuple[str, object, object]]:
    """Keys that both reports hold, an older one fewer, with values that differ."""
    before, after = old.model_dump(), new.model_dump()
    both = (old.model_fields_set & new.model_fields_set) | set(NEW_SETTINGS)
    return ((key, before[key], after[key]) for key in before if key in both and before[key] != after[key])
