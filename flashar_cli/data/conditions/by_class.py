"""Class labels: ids, ranges and names on the command line, numbers or names in data."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.data.conditions.base import ConditionKind, Given, Subjects
from flashar_cli.data.sources.base import Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import number_range
from flashar_cli.inputs.text import MOST_SHOWN, shown
from flashar_cli.models.prefix import Conditions

MOST_BY_DEFAULT = 16
MOST_LABELS = 2**22  # of one list, repetitions included
MOST_EXAMPLES = 40  # classes of a sample sheet


@dataclass(frozen=True)
class Labels(Subjects):
    """Classes ``numbers`` int64 [M]."""

    numbers: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.numbers

    def take(self, rows: NDArray[np.integer] | slice) -> Labels:
        return Labels(self.numbers[rows])

    def conditions(self) -> Conditions:
        return Conditions(labels=torch.from_numpy(self.numbers))

    def names(self) -> list[str]:
        return [f"class {label}" for label in self.numbers.tolist()]

    def content(self) -> bytes:
        return np.ascontiguousarray(self.numbers).tobytes()


class ClassConditions(ConditionKind):
    """One class of ``prefix.num_classes`` an image."""

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.prefix.num_classes, self.class_names)

    def parse(self, given: Given, device: torch.device) -> tuple[Conditions, list[str]]:
        if set(given.options) - {"--labels"}:
            raise FlasharError("this model is class-conditional; pass --labels, not captions")
        given.refuse_negative("this model is class-conditional, and has a class of its own for no class")
        return self._named(parse_labels(given.labels, self.prefix.num_classes, self.class_names))

    def read(self, values: list[Any], features: list[Path], where: Path) -> Labels:
        return Labels(np.array(values, dtype=np.int64))

    def check_labels(self, labels: NDArray[np.int64] | None, data: str) -> None:
        if labels is None or not len(labels):
            return
        lowest, highest, known = labels.min(), labels.max(), self.prefix.num_classes
        if not 0 <= lowest <= highest < known:
            raise FlasharError(f"--data {data} has labels {lowest}..{highest}; this model knows 0..{known - 1}")

    def examples(self, subjects: Subjects, count: int) -> tuple[Conditions, list[str]]:
        """The first classes, 40 at most, in turn."""
        return self._named([k % min(self.prefix.num_classes, MOST_EXAMPLES) for k in range(count)])

    def _named(self, labels: list[int]) -> tuple[Conditions, list[str]]:
        names = self.class_names
        return Conditions(labels=torch.tensor(labels)), [names[k] if names else f"class {k}" for k in labels]


def parse_labels(text: str | None, num_classes: int, names: Sequence[str] | None) -> list[int]:
    """``'207,360'``, ``'0-9'`` (both ends included), ``'circle,star'`` or a mix; None: the first classes, at most 16.

    Raises FlasharError for a label outside 0..num_classes-1 or a name that is not in the checkpoint's table.
    """
    if text is None:
        return list(range(min(num_classes, MOST_BY_DEFAULT)))
    labels: list[int] = []
    for part in (piece.strip() for piece in text.split(",")):
        ends = number_range(part)
        if ends is None:
            labels.append(_by_name(part, names))
            continue
        first, last = ends
        if "-" not in part and last >= num_classes:
            raise FlasharError(f"label {first} is out of range; expected 0..{num_classes - 1}")
        if not first <= last < num_classes:
            raise FlasharError(
                f"label range {shown(part)} is not within 0-{num_classes - 1}; expected FIRST-LAST, rising"
            )
        if len(labels) + last - first >= MOST_LABELS:
            raise FlasharError(f"--labels names more than {MOST_LABELS} labels; expected fewer")
        labels.extend(range(first, last + 1))
    return labels


def _by_name(name: str, names: Sequence[str] | None) -> int:
    if not names:
        raise FlasharError(
            f"label {shown(name)} is not a number, and this checkpoint has no table of class names; pass ids"
        )
    if name in names:
        return list(names).index(name)
    near = difflib.get_close_matches(name[:MOST_SHOWN], names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(list(names)[:12])}"
    raise FlasharError(f"there is no class {shown(name)}; {hint}")
