"""Encoded images of any kind to RGB. Every image that can't be read raises BadImage, so that a run can skip it."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flashar_cli.errors import FlasharError

LARGEST_ASPECT = 100  # long side / short side: beyond it, scaling the short side up to a frame makes a giant
# Pillow's formats for photographs. Others start programs (PostScript) or hold no pixels.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class BadImage(FlasharError):
    """An image that can't be read. The message says why, in the same words at every reading."""


def decode(raw: bytes | Image.Image) -> Image.Image:
    """An image in RGB as a viewer shows it: rotated as its EXIF says, white behind transparent pixels, the first frame
    of an animation, 16 bits scaled to 8.

    Raises BadImage for truncated files, other files, extremely narrow images and decompression bombs.
    """
    try:
        image = raw if isinstance(raw, Image.Image) else Image.open(io.BytesIO(raw), formats=FORMATS)
        if min(image.size) < 1 or max(image.size) > LARGEST_ASPECT * min(image.size):
            raise BadImage(f"{image.width} x {image.height} pixels, too narrow to crop")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadImage("not an image that can be recognised") from None
    except BadImage:
        raise
    except Exception as error:  # Pillow's parsers raise about any type on damaged files; all mean the same here
        reason = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "it", " ".join(str(error).split()))
        raise BadImage(reason or type(error).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # Pillow's own conversion clips at 255 instead of scaling. Mode I is how older files of 16 bits are opened.
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise BadImage("pixels beyond 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating-point pixels of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
