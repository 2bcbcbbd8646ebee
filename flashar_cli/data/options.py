"""How images are encoded. No torch here, so that the command line can show the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashar_cli.config.recipe import DATA_DEFAULTS, DataSettings
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import decimal
from flashar_cli.inputs.text import shown

if TYPE_CHECKING:
    import torch


DATA_HELP = (
    "shapes[:N], held-out-shapes[:N], a folder of images, .parquet or .tar files (also of .pt tokens), "
    "a .jsonl manifest, a `datasets` id"
)


@dataclass(frozen=True)
class EncodeOptions:
    """``data`` says how images are found and cropped. ``workers`` None: by CPU cores; ``dtype`` None: float32;
    ``device`` None: the model's.
    """

    data: DataSettings = DATA_DEFAULTS
    batch_size: int = 64
    shard_size: int = 1024
    workers: int | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None


@dataclass(frozen=True)
class MaxBad:
    """How many bad images are skipped before a run stops: a count, or a percentage of all."""

    text: str

    def __post_init__(self) -> None:
        if not _is_percentage(self.text) and decimal(self.text) is None:
            raise FlasharError(
                f"--max-bad is {shown(self.text)}; expected a count such as 20 or a percentage such as 1%"
            )

    def of(self, num_images: int) -> int:
        """The largest number of bad images among ``num_images``."""
        if self.text.endswith("%"):
            return int(num_images * float(self.text[:-1]) / 100)
        return int(self.text)


def _is_percentage(text: str) -> bool:
    try:
        return text.endswith("%") and 0 <= float(text.removesuffix("%")) <= 100  # NaN fails both
    except ValueError:
        return False
