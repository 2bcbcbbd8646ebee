"""Class labels as people write them: ids, ranges, names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from flashar_cli.bounds import number_range
from flashar_cli.errors import FlasharError
from flashar_cli.text import MOST_SHOWN, shown

MOST_BY_DEFAULT = 16
MOST_LABELS = 2**22  # of one list, repetitions included


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
