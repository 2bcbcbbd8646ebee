"""Class labels as people write them: ids, ranges, names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from flashar_cli.errors import FlasharError

MOST_BY_DEFAULT = 16


def parse_labels(text: str | None, num_classes: int, names: Sequence[str] | None) -> list[int]:
    """``'207,360'``, ``'0-9'`` (both ends included), ``'circle,star'`` or a mix; None: the first classes, at most 16.

    Raises FlasharError for a label outside 0..num_classes-1 or a name that is not in the checkpoint's table.
    """
    if text is None:
        return list(range(min(num_classes, MOST_BY_DEFAULT)))
    labels: list[int] = []
    for part in (piece.strip() for piece in text.split(",")):
        first, dash, last = part.partition("-")
        if part.isdecimal():
            labels.append(int(part))
        elif dash and first.strip().isdecimal() and last.strip().isdecimal():
            if int(last) < int(first) or int(last) >= num_classes:
                raise FlasharError(
                    f"label range '{part}' is not within 0-{num_classes - 1}; expected FIRST-LAST, rising"
                )
            labels.extend(range(int(first), int(last) + 1))
        else:
            labels.append(_by_name(part, names))
    for label in labels:
        if not 0 <= label < num_classes:
            raise FlasharError(f"label {label} is out of range; expected 0..{num_classes - 1}")
    return labels


def _by_name(name: str, names: Sequence[str] | None) -> int:
    if not names:
        raise FlasharError(f"label '{name}' is not a number, and this checkpoint has no table of class names; pass ids")
    if name in names:
        return list(names).index(name)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(list(names)[:12])}"
    raise FlasharError(f"there is no class '{name}'; {hint}")
