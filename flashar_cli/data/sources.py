"""Where pictures come from: drawn shapes, a folder, or a `datasets` id. Each lists ids and labels before any picture is
opened, so that a subset is chosen first and only that is read.

Letters: M pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.data.shapes import CLASS_NAMES, DRAWING_VERSION, TRAINING_SEED, draw
from flashar_cli.errors import FlasharError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SHAPES = "shapes"
DEFAULT_SHAPES = 20_000


class PictureSource(Protocol):
    """``ids`` [M] name the pictures for good; ``labels`` int64 [M]; ``fingerprint`` changes when the content does."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    fingerprint: str

    def picture(self, row: int) -> Image.Image:
        """One picture, RGB. Raises FlasharError where it can't be read."""


@dataclass
class DrawnShapes:
    """The first ``num_images`` drawn shapes of a seed."""

    num_images: int = DEFAULT_SHAPES
    seed: int = TRAINING_SEED
    ids: NDArray[np.str_] = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.ids = np.array([f"shapes-{self.seed}-{index:08d}" for index in range(self.num_images)])
        self.labels = np.arange(self.num_images, dtype=np.int64) % len(CLASS_NAMES)
        self.fingerprint = f"shapes-{DRAWING_VERSION}-{self.seed}"

    def picture(self, row: int) -> Image.Image:
        """Picture ``row`` of the seed."""
        return Image.fromarray(draw(self.seed, row))


@dataclass
class ImageFolder:
    """Pictures of a folder, a sub-folder a class: named as the model's classes, or by number, or one for each class of
    the model in alphabetical order.
    """

    root: Path
    num_classes: int
    class_names: Sequence[str] | None
    ids: NDArray[np.str_] = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        files = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not files:
            raise FlasharError(f"--data {self.root} holds no pictures ({', '.join(EXTENSIONS)}) and no manifest.json")
        names = [path.relative_to(self.root).parts[0] if path.parent != self.root else "" for path in files]
        number = _class_numbers(set(names), self.root, self.num_classes, self.class_names)
        self.ids = np.array([path.relative_to(self.root).as_posix() for path in files])
        self.labels = np.array([number[name] for name in names], dtype=np.int64)
        sizes = "\n".join(f"{name} {path.stat().st_size}" for name, path in zip(self.ids, files, strict=True))
        self.fingerprint = hashlib.sha256(sizes.encode()).hexdigest()

    def picture(self, row: int) -> Image.Image:
        """Picture ``row`` in alphabetical order of its path."""
        path = self.root / str(self.ids[row])
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FlasharError(f"{path} cannot be read as a picture ({error}); repair or remove it") from None


@dataclass
class HubDataset:
    """The training split of a `datasets` id with columns ``image`` and ``label``."""

    name: str
    ids: NDArray[np.str_] = field(init=False)
    labels: NDArray[np.int64] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            from datasets import load_dataset
            from datasets.exceptions import DatasetsError
        except ImportError:
            raise FlasharError(f"--data {self.name} needs the datasets package; install it, or pass a folder") from None
        try:
            self._rows: Any = load_dataset(self.name, split="train")
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FlasharError(
                f"--data {self.name} is neither a folder, nor shapes[:N], nor a data set that can be loaded ({reason})"
            ) from None
        missing = {"image", "label"} - set(self._rows.column_names)
        if missing:
            raise FlasharError(
                f"data set {self.name} lacks column {', '.join(sorted(missing))}; expected image and label"
            )
        self.ids = np.array([f"{self.name}-{index:09d}" for index in range(len(self._rows))])
        try:
            self.labels = np.array(self._rows["label"], dtype=np.int64)
        except (TypeError, ValueError):
            raise FlasharError(
                f"the labels of data set {self.name} are not whole numbers; expected class ids"
            ) from None
        self.fingerprint = str(self._rows._fingerprint)

    def picture(self, row: int) -> Image.Image:
        """Picture ``row`` of the split."""
        try:
            return self._rows[row]["image"].convert("RGB")
        except (OSError, ValueError, SyntaxError, AttributeError, Image.DecompressionBombError) as error:
            raise FlasharError(f"picture {row} of data set {self.name} cannot be read ({error})") from None


def open_pictures(data: str, num_classes: int, class_names: Sequence[str] | None) -> PictureSource:
    """``shapes``, ``shapes:N``, a folder of pictures, or a `datasets` id. Raises FlasharError."""
    kind, _, count = data.partition(":")
    if kind == SHAPES and not Path(data).exists():
        if count and (not count.isdecimal() or int(count) < 1):
            raise FlasharError(f"--data {data}: '{count}' is not a number of pictures; expected e.g. shapes:2000")
        return DrawnShapes(int(count) if count else DEFAULT_SHAPES)
    path = Path(data)
    if path.is_dir():
        return ImageFolder(path, num_classes, class_names)
    if path.exists() or data.startswith((".", "/", "~")):
        raise FlasharError(f"--data {data} is not a folder; expected a folder of pictures or of code shards")
    return HubDataset(data)


def _class_numbers(
    folders: set[str], root: Path, num_classes: int, class_names: Sequence[str] | None
) -> dict[str, int]:
    """The class of each sub-folder. Raises FlasharError where that would be a guess."""
    if class_names is not None and folders <= set(class_names):
        return {name: list(class_names).index(name) for name in folders}
    if all(name.isdecimal() and int(name) < num_classes for name in folders):
        return {name: int(name) for name in folders}
    if len(folders) == num_classes and "" not in folders:
        return {name: index for index, name in enumerate(sorted(folders))}
    if "" in folders and folders != {""}:
        raise FlasharError(f"--data {root} has pictures beside its class folders; move them into one, or away")
    if num_classes == 1 and folders == {""}:
        return {"": 0}
    known = f"the model's class names ({', '.join(class_names[:3])}, ...), " if class_names else ""
    raise FlasharError(
        f"--data {root} has {len(folders - {''})} class folders and the model {num_classes} classes; "
        f"name the folders by {known}class number, or have one for each class"
    )


def center_crop(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: scaled so that the picture covers the frame, cut in the middle.

    Source: the centre crop of ADM, as in FoundationVision/LlamaGen dataset/augmentation.py: halve by box filter while
    more than twice as large, then bicubic.
    """
    while min(image.width / width, image.height / height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    if scale != 1:
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
