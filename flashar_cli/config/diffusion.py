"""What block diffusion adds to a raster model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flashar_cli.config.base import Config
from flashar_cli.inputs import bounds


class DiffusionConfig(Config):
    """Blocks of raster order, whose tokens are drawn a few at a time while the others are unknown."""

    block: Annotated[int, bounds.WINDOW] = Field(description="tokens of a block; the last of a grid may be smaller")

    def num_context(self, num_cells: int) -> int:
        """Tokens of an image that any block sees as they are: all but those of the last block."""
        return (num_cells - 1) // self.block * self.block
