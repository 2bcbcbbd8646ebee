"""Views of a picture that are encoded: crops and their mirror images.

Letters: A views; h, w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.bounds import CROP_RATIO
from flashar_cli.errors import FlasharError

NUM_VIEWS = {"center": 1, "center-flip": 2, "ten-crop": 10}


@dataclass(frozen=True)
class Augmentation:
    """``center``; ``center-flip``: that and its mirror image; ``ten-crop``: from the centre crop ``crop_ratio`` times
    as large, its centre and four corners, then their mirror images. View 0 is always the centre.
    """

    name: str = "center"
    crop_ratio: float = 1.1

    def __post_init__(self) -> None:
        if self.name not in NUM_VIEWS:
            raise FlasharError(f"--augment is {self.name}; expected one of {', '.join(NUM_VIEWS)}")
        CROP_RATIO.check("--crop-ratio", self.crop_ratio)

    @property
    def num_views(self) -> int:
        """A."""
        return NUM_VIEWS[self.name]

    def describe(self) -> dict[str, Any]:
        """What a manifest records; the ratio only where it matters."""
        ratio = {"crop_ratio": self.crop_ratio} if self.name == "ten-crop" else {}
        return {"name": self.name, **ratio, "views": self.num_views}

    def views(self, image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 [A, h, w, 3] of an RGB picture."""
        if self.name != "ten-crop":
            crops = center_crop(image, height, width)[None]
        else:
            # Source: FoundationVision/LlamaGen autoregressive/train/extract_codes_c2i.py, which cuts the ratio's
            # fraction off too (281 pixels for 256) and takes torchvision's ten crops, the centre last.
            large = center_crop(image, int(height * self.crop_ratio), int(width * self.crop_ratio))
            down, right = large.shape[0] - height, large.shape[1] - width
            corners = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)]
            crops = np.stack([large[top : top + height, left : left + width] for top, left in corners])
        return crops if self.name == "center" else np.concatenate([crops, crops[:, :, ::-1]])


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
