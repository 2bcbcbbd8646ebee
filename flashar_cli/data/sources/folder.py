"""A folder of images with a sub-folder for each class, or with captions beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.sources.base import EXTENSIONS, Fetch, ImageSource, as_ids, digest, read_image
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import decimal
from flashar_cli.inputs.reading import MOST_LINE_BYTES, read_text


class _Images(ImageSource):
    """All images of a folder and its sub-folders, in order of their paths, which are their ids."""

    def __init__(self, root: Path) -> None:
        self.files = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not self.files:
            raise FlasharError(
                f"--data {root} holds no images ({', '.join(EXTENSIONS)}), no .parquet, .tar or .jsonl files, "
                "and no manifest.json of token shards"
            )
        self.ids = as_ids([path.relative_to(root).as_posix() for path in self.files], f"--data {root}")
        self.marks = [f"{name} {path.stat().st_size}" for name, path in zip(self.ids.tolist(), self.files, strict=True)]

    def images(self, rows: NDArray[np.int64]) -> Iterator[Fetch]:
        """Files, read when fetched."""
        for row in rows.tolist():
            yield partial(read_image, self.files[row])


class ImageFolder(_Images):
    """Images in a sub-folder for each class, which is named as in the model or by number; with other names there must
    be as many as classes, and their order is alphabetical.
    """

    def __init__(self, root: Path, num_classes: int, class_names: Sequence[str] | None) -> None:
        super().__init__(root)
        names = [path.relative_to(root).parts[0] if path.parent != root else "" for path in self.files]
        number = _class_numbers(set(names), root, num_classes, class_names)
        self.labels = np.array([number[name] for name in names], dtype=np.int64)
        self.fingerprint = digest(self.marks)


class CaptionedFolder(_Images):
    """Images, each with its caption beside it in a .txt file of the same stem."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.captions = [_caption(path) for path in self.files]
        self.fingerprint = digest([*self.marks, *self.captions])


def _caption(image: Path) -> str:
    """The caption of an image file. Raises FlasharError where there is none."""
    path = image.with_suffix(".txt")
    if not path.is_file():
        raise FlasharError(f"{image} has no caption, which this model reads; expected it in {path.name} beside it")
    return read_text(path, most=MOST_LINE_BYTES).strip()


def _class_numbers(
    folders: set[str], root: Path, num_classes: int, class_names: Sequence[str] | None
) -> dict[str, int]:
    """The class of each sub-folder. Raises FlasharError where it is ambiguous."""
    if class_names is not None and folders <= set(class_names):
        return {name: list(class_names).index(name) for name in folders}
    numbers = {name: decimal(name) for name in folders}
    if all(number is not None and number < num_classes for number in numbers.values()):
        return {name: number for name, number in numbers.items() if number is not None}
    if len(folders) == num_classes and "" not in folders:
        return {name: index for index, name in enumerate(sorted(folders))}
    if "" in folders and folders != {""}:
        raise FlasharError(f"--data {root} has images beside its class folders; move them into one, or away")
    if num_classes == 1 and folders == {""}:
        return {"": 0}
    known = f"the model's class names ({', '.join(class_names[:3])}, ...), " if class_names else ""
    raise FlasharError(
        f"--data {root} has {len(folders - {''})} class folders and the model {num_classes} classes; "
        f"name the folders by {known}class number, or have one for each class"
    )
