"""Image files: PNGs that record how they were made, and contact sheets."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

TEXT_KEY = "flashar"


def png_bytes(image: NDArray[np.uint8], settings: dict[str, Any]) -> bytes:
    """The PNG file of uint8 [height, width, 3], with ``settings`` as JSON in its text chunk ``flashar``."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(TEXT_KEY, json.dumps(settings))
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(path: Path, image: NDArray[np.uint8], settings: dict[str, Any]) -> None:
    """Writes ``png_bytes``."""
    path.write_bytes(png_bytes(image, settings))


def read_png(path: Path) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]."""
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def contact_sheet(
    images: NDArray[np.uint8], columns: int | None = None, gap: int = 2, largest: int = 100
) -> NDArray[np.uint8]:
    """The first ``largest`` of uint8 [B, height, width, 3] side by side on white; by default nearly a square."""
    images = images[:largest]
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
