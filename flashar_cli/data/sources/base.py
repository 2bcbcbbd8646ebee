"""The interface of every source of images, and how all of them read labels and captions.

Letters: M images.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.config.recipe import DATA_DEFAULTS, DataSettings
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import LABEL, decimal
from flashar_cli.inputs.reading import read_bytes
from flashar_cli.inputs.text import shown

COLUMNS = ("split", "image_column", "label_column", "caption_column")  # settings that name parts of a source
CAPTIONS = (DATA_DEFAULTS.caption_column, "text", "prompt")  # where captions are by default, the first that is there
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_IMAGE_BYTES = 2**30
MOST_ID = 1024
# Returns one image, encoded or drawn. The thread that decodes the image calls it; an OSError or FlasharError makes it a
# bad image.
Fetch = Callable[[], bytes | Image.Image]


class ImageSource(ABC):
    """Images with what they show, all listed before any is opened: a subset is chosen first, and only that is read.
    Where ``holds_tokens`` is set, it holds the images' token grids in their place.

    ``ids`` [M] name the images permanently; models read either ``labels`` int64 [M] or ``captions`` [M];
    ``fingerprint`` changes with the content.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64] | None = None
    captions: Sequence[str] | None = None
    fingerprint: str
    holds_tokens: bool = False

    @abstractmethod
    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """One ``Fetch`` for each of these ascending rows; other images are skipped at as little cost as possible.
        Raises FlasharError where the source itself can't be read.
        """

    def _list(self, ids: Sequence[str], values: Sequence[Any], marks: Iterable[str], what: str, wanted: Wanted) -> None:
        """Takes the images' names and labels or captions; ``marks`` go into the fingerprint. Raises FlasharError where
        names are no printable text or not unique, and for wrong labels or captions.
        """
        self.ids = as_ids(ids, what)
        if len(set(ids)) < len(ids):
            repeated = Counter(ids).most_common(1)[0][0]
            raise FlasharError(f"{what} names two images '{repeated}'; give each an id of its own")
        self.labels, self.captions = read_text(values, what, wanted)
        self.fingerprint = digest(marks)


@dataclass(frozen=True)
class Wanted:
    """What a model reads beside images: classes 0 .. ``num_classes`` - 1; captions where ``num_classes`` is None."""

    num_classes: int | None
    class_names: Sequence[str] | None = None

    @property
    def captions(self) -> bool:
        return self.num_classes is None

    def column(self, settings: DataSettings, present: Container[str]) -> str:
        """The source's name for what the model reads, given the names that it has."""
        if not self.captions:
            return settings.label_column
        default = settings.caption_column == DATA_DEFAULTS.caption_column
        return next((name for name in CAPTIONS if default and name in present), settings.caption_column)


def refuse_columns(settings: DataSettings, data: str, kind: str, *, but: tuple[str, ...] = ()) -> None:
    """Raises FlasharError where the settings name a part that this kind of source doesn't have."""
    for name in COLUMNS:
        if name not in but and getattr(settings, name) != getattr(DATA_DEFAULTS, name):
            option = f"--{name.replace('_', '-')}"
            raise FlasharError(f"--data {data} is {kind}, which has no use for {option}; leave it out")


def choose_column(what: str, settings: DataSettings, wanted: Wanted, present: Sequence[str]) -> str:
    """The column of what the model reads. Raises FlasharError where a table has none, or none of images."""
    kind, option = ("captions", "caption") if wanted.captions else ("class labels", "label")
    column = wanted.column(settings, present)
    if column not in present:
        raise FlasharError(
            f"{what} has no column '{column}'; this model reads {kind}; its columns are "
            f"{', '.join(sorted(present))}; choose one with --{option}-column"
        )
    if settings.image_column not in present:
        raise FlasharError(
            f"{what} has no column '{settings.image_column}'; its columns are {', '.join(present)}; choose one with "
            "--image-column"
        )
    return column


def read_text(
    values: Sequence[Any], what: str, wanted: Wanted
) -> tuple[NDArray[np.int64] | None, Sequence[str] | None]:
    """A column's values as (labels, None) or (None, captions). Raises FlasharError where they are neither."""
    if wanted.captions:
        if not all(isinstance(value, str) and _is_unicode(value) for value in values):
            raise FlasharError(f"the captions of {what} are not all text; expected one caption an image")
        return None, list(values)
    return _labels(values, what, wanted), None


def _labels(values: Sequence[Any], what: str, wanted: Wanted) -> NDArray[np.int64]:
    """Class numbers, from numbers or from the model's class names."""
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
    """Names of images as an array [M]. Raises FlasharError for names that NumPy or a manifest could not hold: no text,
    invalid Unicode, control characters, or too long.
    """
    for name in names:
        if not (isinstance(name, str) and len(name) <= MOST_ID and name.isprintable() and _is_unicode(name)):
            raise FlasharError(
                f"{what} names an image {str(name)[:80]!r}; expected printable Unicode of at most {MOST_ID} characters"
            )
    return np.array(names, dtype=np.str_)


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of some lines. Raises FlasharError for a line that is not UTF-8."""
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
    except UnicodeEncodeError:  # a lone surrogate, of a file name in another encoding or of JSON
        return False
    return True


def read_image(path: Path) -> bytes:
    """The bytes of an image file. Raises FlasharError without the path, as the message goes into a manifest."""
    return read_bytes(path, "its file", MOST_IMAGE_BYTES)


def relative_name(file: Path, path: Path) -> str:
    """A file's name relative to the source, wherever that is."""
    return file.name if file == path else file.relative_to(path).as_posix()
