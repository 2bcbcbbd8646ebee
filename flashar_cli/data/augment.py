"""The views of an image that are encoded: crops and their mirror images.

Letters: A views; h, w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.config.recipe import DATA_DEFAULTS
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import CROP_RATIO

NUM_VIEWS = {"center": 1, "center-flip": 2, "ten-crop": 10}


@dataclass(frozen=True)
class Augmentation:
    """``center``: the centre crop. ``center-flip``: also its mirror image. ``ten-crop``: centre and four corners of a
    centre crop ``crop_ratio`` times as large, then their mirror images. View 0 is always the centre.
    """

    name: str = DATA_DEFAULTS.augment
    crop_ratio: float = DATA_DEFAULTS.crop_ratio

    def __post_init__(self) -> None:
        if self.name not in NUM_VIEWS:
            raise FlasharError(f"--augment is {self.name}; expected one of {', '.join(NUM_VIEWS)}")
        CROP_RATIO.check("--crop-ratio", self.crop_ratio)

    @property
    def num_views(self) -> int:
        """A."""
        return NUM_VIEWS[self.name]

    def describe(self) -> dict[str, Any]:
        """The augmentation as a manifest records it; the ratio only for ten-crop."""
        ratio = {"crop_ratio": self.crop_ratio} if self.name == "ten-crop" else {}
        return {"name": self.name, **ratio, "views": self.num_views}

    def views(self, image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 [A, h, w, 3] of an RGB image."""
        if self.name != "ten-crop":
            crops = center_crop(image, height, width)[None]
        else:
            # Source: FoundationVision/LlamaGen autoregressive/train/extract_codes_c2i.py, which rounds down too (281
            # pixels for 256), and has the centre last, as torchvision's TenCrop.
            large = center_crop(image, int(height * self.crop_ratio), int(width * self.crop_ratio))
            down, right = large.shape[0] - height, large.shape[1] - width
            corners = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)]
            crops = np.stack([large[top : top + height, left : left + width] for top, left in corners])
        return crops if self.name == "center" else np.concatenate([crops, crops[:, :, ::-1]])


CENTER = Augmentation("center")


def center_crop(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: the middle of the image, scaled until it just covers the frame.

    Source: the centre crop of ADM, as in FoundationVision/LlamaGen dataset/augmentation.py: halve with a box
    filter while at least twice as large, then bicubic.
    """
    while min(image.width / width, image.height / height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    if scale != 1:
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
