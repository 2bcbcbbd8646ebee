"""Numbers that others published: facts to hold beside a bench, never measured here."""

from __future__ import annotations

from dataclasses import dataclass

# Of the ImageNet 256x256 table; FlashAR's authors don't say on which GPU theirs were measured.
SOURCE = "FlashAR, arXiv 2605.09430"
A100 = "one A100, largest batch, guidance 2"
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Published:
    """One row: a method on one size of model, 16x16 tokens, 256x256 pixels."""

    method: str
    size: str
    fid: float
    images_per_s: float
    hardware: str
    source: str = SOURCE


def _rows(method: str, hardware: str, numbers: dict[str, tuple[float, float]]) -> tuple[Published, ...]:
    return tuple(Published(method, size, fid, speed, hardware) for size, (fid, speed) in numbers.items())


PUBLISHED = (
    *_rows("LlamaGen, raster", A100, {"b": (5.46, 117.9), "l": (3.80, 47.1), "xl": (3.39, 23.7), "xxl": (3.09, 14.1)}),
    *_rows("NAR", A100, {"b": (4.65, 419.7), "l": (3.06, 195.4), "xl": (2.70, 98.1), "xxl": (2.58, 56.9)}),
    *_rows(
        "BlockDiffusion",
        NOT_STATED,
        {"b": (5.91, 186.3), "l": (4.55, 103.2), "xl": (4.13, 41.7), "xxl": (3.78, 26.8)},
    ),
    *_rows("FlashAR", NOT_STATED, {"b": (4.68, 447.2), "l": (3.16, 224.7), "xl": (2.94, 109.3), "xxl": (2.79, 63.4)}),
)


def published_for(name: str) -> list[Published]:
    """Rows of the size that a preset's name ends in, e.g. ``llamagen-xl``; none for other models."""
    family, _, size = name.rpartition("-")
    return [row for row in PUBLISHED if row.size == size] if family in ("llamagen", "nar") else []
