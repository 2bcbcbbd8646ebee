"""Two bench reports side by side: what moved, and whether something became slower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashar_cli.benchmarking.report import BatchReport, BenchReport
from flashar_cli.config import Config
from flashar_cli.errors import FlasharError

# Weights of another training run are as fast; versions are what one compares.
MODEL_KEYS = ("name", "family", "grid", "num_parameters", "branch")


@dataclass(frozen=True)
class Change:
    """One number in both reports. ``change`` is relative to the old one; ``verdict`` is same, better or worse."""

    batch_size: int
    what: str
    old: float
    new: float
    unit: str
    change: float
    verdict: str


def differences(old: BenchReport, new: BenchReport) -> list[str]:
    """What keeps two reports from being comparable: other hardware, settings or model."""
    found = [f"{key}: {a} / {b}" for key, a, b in _differing(old.hardware, new.hardware)]
    found += [f"{key}: {a} / {b}" for key, a, b in _differing(old.settings, new.settings)]
    found += [f"model {key}: {a} / {b}" for key, a, b in _differing(old.model, new.model) if key in MODEL_KEYS]
    return found


def version_changes(old: BenchReport, new: BenchReport) -> list[str]:
    """Versions, commit and weights that differ; reports may be compared across them."""
    found = [f"{key}: {a} -> {b}" for key, a, b in _differing(old.software, new.software)]
    return found + [f"{key}: {a} -> {b}" for key, a, b in _differing(old.model, new.model) if key == "weights"]


def compare(old: BenchReport, new: BenchReport, tolerance: float, allow_different: bool = False) -> list[Change]:
    """Every speed-up and time that both reports hold. A change within ``tolerance`` (0.05: 5 %) is ``same``.

    Raises FlasharError where hardware, settings or model differ, unless ``allow_different``, and where no batch size
    is common to both.
    """
    different = differences(old, new)
    if different and not allow_different:
        raise FlasharError(
            f"the reports are not comparable ({'; '.join(different)}); "
            "run `flashar bench` the same way on the same machine, or pass --allow-different"
        )
    new_batches = {batch.batch_size: batch for batch in new.batches}
    pairs = [(batch, new_batches[batch.batch_size]) for batch in old.batches if batch.batch_size in new_batches]
    if not pairs:
        raise FlasharError("the reports have no batch size in common; bench both with the same --batch-sizes")
    return [change for old_batch, new_batch in pairs for change in _changes(old_batch, new_batch, tolerance)]


def _changes(old: BatchReport, new: BatchReport, tolerance: float) -> Iterator[Change]:
    old_numbers, new_numbers = _numbers(old), _numbers(new)
    for what, before in old_numbers.items():
        if what not in new_numbers:
            continue
        after = new_numbers[what]
        change = after / before - 1 if before else float(after > 0)
        is_time = what != "speedup"
        worse = change > tolerance if is_time else change < -tolerance
        better = change < -tolerance if is_time else change > tolerance
        verdict = "worse" if worse else "better" if better else "same"
        yield Change(old.batch_size, what, before, after, "s" if is_time else "x", change, verdict)


def _numbers(batch: BatchReport) -> dict[str, float]:
    numbers = {"speedup": batch.speedup}
    for name, arm in (("raster", batch.raster), ("flashar", batch.flashar)):
        numbers[f"{name} tokens"] = arm.token_generation_s.median_s
        if arm.token_decode_s is not None:
            numbers[f"{name} token decode"] = arm.token_decode_s.median_s
    return numbers


def _differing(old: Config, new: Config) -> Iterator[tuple[str, object, object]]:
    before, after = old.model_dump(), new.model_dump()
    return ((key, before[key], after[key]) for key in before if before[key] != after[key])
