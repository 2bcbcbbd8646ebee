"""Images that several test files share, among them all kinds that are hard to load."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashar_cli.data.shapes import CLASS_NAMES, draw


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters(width: int = 32, height: int = 32) -> Image.Image:
    """Red, green / blue, white."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and holds almost no data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def good_kinds() -> dict[str, bytes]:
    """Unusual images that can be read, all of ``quarters``."""
    image = quarters()
    ramp = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees
    return {
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "sixteen.png": encoded(ramp),
        "animated.gif": encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]),
        "turned.jpg": encoded(image, "JPEG", quality=95, exif=exif.tobytes()),
        "palette.png": encoded(image.quantize(8)),
        "alpha.webp": encoded(image.convert("RGBA"), "WEBP", lossless=True),
    }


def bad_kinds() -> dict[str, bytes]:
    """Images that can't be read."""
    jpeg = encoded(quarters(), "JPEG")
    png = encoded(Image.fromarray(draw(0, 3)))
    return {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "text.png": b"this is no image",
        "empty.png": b"",
        "bomb.png": png_header(60_000, 60_000),
        "thin.png": encoded(Image.new("RGB", (1000, 2))),
    }


def shape_folder(folder: Path, count: int = 20, seed: int = 5) -> Path:
    """Drawn images in sub-folders named by class."""
    for index in range(count):
        name = CLASS_NAMES[index % 10]
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(seed, index)).save(folder / name / f"{index:04d}.png")
    return folder


def captioned_images(folder: Path, count: int) -> Path:
    """Drawn images and the JSONL manifest of their captions, which is returned."""
    folder.mkdir()
    words = ("a red star", "Ring", "a blue ring a star", "red")
    lines = []
    for index in range(count):
        Image.fromarray(draw(7, index)).save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "caption": words[index % 4]}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"
