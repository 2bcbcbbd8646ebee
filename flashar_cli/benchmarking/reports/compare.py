"""Two bench reports side by side: what moved, and whether something became worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from flashar_cli.benchmarking.reports.document import HEADLINES, BatchReport, BenchReport
from flashar_cli.config import Config, Sampling
from flashar_cli.errors import FlasharError

# Not the weights: those of another training run are as fast.
MODEL_KEYS = ("name", "family", "grid", "num_parameters", "branch")
HARDWARE_KEYS = ("cpu", "num_cpu_cores", "cpu_features", "gpu")
# Without --threads these follow from the number of cores: they tell the machine.
MACHINE_SETTINGS = ("num_threads", "num_interop_threads")
# A new arm does no harm, and one that is gone is reported as missing.
UNCOMPARED_SETTINGS = ("arms", *MACHINE_SETTINGS)
# Old reports lack these; they ran with the defaults.
NEW_SETTINGS = ("quantize", *Sampling.model_fields)
# Another version of PyTorch may start a few operators more or less; forwards are exact.
TOLERANCES = {"forwards": 0.0, "launches": 0.01}

Gate = Literal["all", "ratios"]
Verdict = Literal["same", "better", "worse", "lower", "missing"]
FAILURES: tuple[Verdict, ...] = ("worse", "missing")


@dataclass(frozen=True)
class Change:
    """One number of the old report, and what became of it."""

    grid: str
    batch_size: int
    what: str
    old: float
    new: float | None  # None where the new report lacks the number: it is ``missing``
    unit: str
    change: float | None  # relative to the old number
    verdict: Verdict  # ``lower``: a speed-up fell while the faster arm kept its distance from its floor
    gates: bool = True  # without it, the change is shown and fails nothing

    @property
    def fails(self) -> bool:
        """Whether a gate is to fail because of it."""
        return self.gates and self.verdict in FAILURES


@dataclass(frozen=True)
class _Number:
    value: float
    unit: str
    times_floor: float | None = None  # of a speed-up: how many times its floor the faster arm takes


def differences(old: BenchReport, new: BenchReport, gate: Gate = "all") -> list[str]:
    """Why two reports are not comparable: settings, models, no common arm, and hardware where times are judged."""
    found = hardware_changes(old, new) if gate == "all" else []
    settings = _differing(old.settings, new.settings)
    found += [f"{key}: {a} / {b}" for key, a, b in settings if key not in UNCOMPARED_SETTINGS]
    if not set(old.settings.arms) & set(new.settings.arms):
        found.append(f"arms: {', '.join(old.settings.arms)} / {', '.join(new.settings.arms)}")
    found += [f"model {key}: {a} / {b}" for key, a, b in _differing(old.model, new.model) if key in MODEL_KEYS]
    return found


def hardware_changes(old: BenchReport, new: BenchReport) -> list[str]:
    """Differences in processor, GPU or number of threads."""
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
    """Every speed-up, time and count of the old report beside the new one's.

    A change within ``tolerance`` (0.05: 5 %) is ``same``; forwards and launches, which are exact, have tolerances of
    their own. A speed-up that fell is ``worse`` only where the faster arm also takes more times its floor than before:
    the floor is made of rates of the same run, so this holds across machines. With the gate ``ratios`` times are not
    judged. A number that is ``missing`` always gates.

    Raises FlasharError where the reports are not comparable, unless ``allow_different``, or have no batch in common.
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
    """Each batch of the old report with that of the new one on the same grid."""
    # Reports of one grid each are compared by batch size even where --allow-different lets the grids differ.
    one_grid_each = all(len({batch.grid for batch in report.batches}) == 1 for report in (old, new))

    def place(batch: BatchReport) -> tuple[str, int]:
        return "" if one_grid_each else batch.grid, batch.batch_size

    places = {place(batch): batch for batch in new.batches}
    return [(batch, places.get(place(batch))) for batch in old.batches]


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
    """Whether arms are told apart by their level: not where both reports have the same one, nor where each has one and
    no arm is in common, which only --allow-different compares.
    """
    before, after = ({arm.level for arm in batch.arms if arm.level} for batch in (old, new))
    in_common = {arm.name for arm in old.arms} & {arm.name for arm in new.arms}
    return max(len(before), len(after)) > 1 or (before != after and bool(in_common))


def _numbers(batch: BatchReport, with_level: bool) -> Mapping[str, _Number]:
    labels = {arm.name: arm.name if with_level else arm.decoder for arm in batch.arms}
    times_floor = {arm.name: arm.times_floor for arm in batch.arms}
    numbers = {}
    for ratio in batch.speedups:
        pair = f"{labels[ratio.arm]} over {labels[ratio.over]}"
        what = "speedup" if pair in [" over ".join(headline) for headline in HEADLINES] else f"speedup {pair}"
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
    """Keys that both reports hold with different values; an older report holds fewer."""
    before, after = old.model_dump(), new.model_dump()
    both = (old.model_fields_set & new.model_fields_set) | set(NEW_SETTINGS)
    return ((key, before[key], after[key]) for key in before if key in both and before[key] != after[key])
