"""What every source of pictures offers, and what they share in reading labels.

Letters: M pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.bounds import LABEL, decimal
from flashar_cli.errors import FlasharError
from flashar_cli.reading import read_bytes
from flashar_cli.text import shown

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PICTURE_BYTES = 2**30
MOST_ID = 1024
# Fetches one picture, encoded or drawn. Called by whichever thread decodes it; an OSError or
# FlasharError makes it a bad picture.
Fetch = Callable[[], bytes | Image.Image]


class PictureSource(Protocol):
    """Pictures with what they show, listed before any is opened: a subset is chosen first, and only that is read.

    ``ids`` [M] name the pictures for good; ``labels`` int64 [M] or ``captions`` [M], whichever the model reads;
    ``fingerprint`` changes when the content does.
    """

    @property
    def ids(self) -> NDArray[np.str_]: ...

    @property
    def labels(self) -> NDArray[np.int64] | None: ...

    @property
    def captions(self) -> Sequence[str] | None: ...

    @property
    def fingerprint(self) -> str: ...

    def pictures(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """One ``Fetch`` for each of these ascending rows; the other pictures are skipped as cheaply as can be. Raises
        FlasharError where the source itself can't be read.
        """


@dataclass(frozen=True)
class Wanted:
    """What a model reads beside pictures: classes 0 .. ``num_classes`` - 1, or captions where that is None."""

    num_classes: int | None
    class_names: Sequence[str] | None = None

    @property
    def captions(self) -> bool:
        return self.num_classes is None


@dataclass(frozen=True)
class Columns:
    """What things are called inside a source; ``split`` None is ``train`` where there are splits."""

    split: str | None = None
    image: str = "image"
    label: str = "label"
    caption: str = "caption"

    def refuse(self, data: str, kind: str, *, but: tuple[str, ...] = ()) -> None:
        """Raises FlasharError where something is named that this kind of source doesn't have."""
        named = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        for name in named:
            if name not in but:
                option = "--split" if name == "split" else f"--{name}-column"
                raise FlasharError(f"--data {data} is {kind}, which has no use for {option}; leave it out")

    def text(self, wanted: Wanted) -> str:
        """The column that a model reads beside the pictures."""
        return self.caption if wanted.captions else self.label


def require_labels(data: str, wanted: Wanted) -> int:
    """The number of classes, for a source that has nothing but classes. Raises FlasharError for caption models."""
    if wanted.num_classes is None:
        raise FlasharError(
            f"--data {data} has classes but no captions, which this model reads; pass captioned pictures"
        )
    return wanted.num_classes


def missing_column(what: str, columns: Columns, wanted: Wanted, present: Iterable[str]) -> FlasharError:
    """The error for a table without the column that the model reads."""
    kind = "captions" if wanted.captions else "class labels"
    option = "--caption-column" if wanted.captions else "--label-column"
    return FlasharError(
        f"{what} has no column '{columns.text(wanted)}'; this model reads {kind}; its columns are "
        f"{', '.join(sorted(present))}; choose one with {option}"
    )


def read_text(
    values: Sequence[Any], what: str, wanted: Wanted
) -> tuple[NDArray[np.int64] | None, Sequence[str] | None]:
    """A column's values as (labels, None) or (None, captions). Raises FlasharError where they are neither."""
    if wanted.captions:
        if not all(isinstance(value, str) and _is_unicode(value) for value in values):
            raise FlasharError(f"the captions of {what} are not all text; expected one caption a picture")
        return None, list(values)
    return _labels(values, what, wanted), None


def _labels(values: Sequence[Any], what: str, wanted: Wanted) -> NDArray[np.int64]:
    """Class numbers, from numbers or from names the model knows."""
    numbers = {name: index for index, name in enumerate(wanted.class_names or ())}

    def number(value: Any) -> int:
        if type(value) is int:
            LABEL.check(f"a label of {what}", value)
            return value
        if not isinstance(value, str):
            raise FlasharError(f"the labels of {what} are not whole numbers; expected class ids or class names")
        found = numbers[value] if value in numbers else decimal(value)
        if found is None:
            raise FlasharError(
                f"{what} has the label {shown(value)}, which is no class number and no class of this model"
            )
        return found

    return np.array([number(value) for value in values], dtype=np.int64)


def as_ids(names: Sequence[Any], what: str) -> NDArray[np.str_]:
    """Names of pictures as an array [M]. Raises FlasharError for what NumPy or a manifest could not hold: no text, no
    Unicode, control characters, or very long.
    """
    for name in names:
        if not (isinstance(name, str) and len(name) <= MOST_ID and name.isprintable() and _is_unicode(name)):
            raise FlasharError(
                f"{what} names a picture {str(name)[:80]!r}; expected printable Unicode of at most {MOST_ID} characters"
            )
    return np.array(names, dtype=np.str_)


def check_unique(ids: NDArray[np.str_], what: str) -> None:
    """Raises FlasharError where two pictures share an id."""
    names, counts = np.unique(ids, return_counts=True)
    if len(names) != len(ids):
        raise FlasharError(f"{what} names two pictures '{names[counts > 1][0]}'; give each an id of its own")


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of some lines. Raises FlasharError for one that is not UTF-8."""
    total = hashlib.sha256()
    for line in lines:
        try:
            total.update(line.encode() + b"\n")
        except UnicodeEncodeError:
            raise FlasharError(f"the name {shown(line)} is not UTF-8, as names are stored; rename the file") from None
    return total.hexdigest()


def files_below(path: Path, suffix: str) -> list[Path]:
    """The file itself, or all such files of a folder and its sub-folders, in order of their paths."""
    return [path] if path.is_file() else sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: a file name in another encoding, or hand-made JSON
        return False
    return True


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file. Raises FlasharError, in words that a manifest keeps: without the path."""
    return read_bytes(path, "its file", MOST_PICTURE_BYTES)


def relative_name(file: Path, path: Path) -> str:
    """A file's name that doesn't depend on where the folder lies."""
    return file.name if file == path else file.relative_to(path).as_posix()
