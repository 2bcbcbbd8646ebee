"""What an image tokenizer is, by kind. ``tokenizers/registry.py`` has the network of each kind."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from flashar_cli.config.base import Config
from flashar_cli.inputs import bounds


class ImageTokenizerConfig(Protocol):
    """Facts of every tokenizer: ``codebook_size`` different tokens, each for a square of ``downsample`` pixels a side;
    ``image_values`` counts the values of its largest map for an image of so many pixels.
    """

    @property
    def codebook_size(self) -> int: ...

    @property
    def downsample(self) -> int: ...

    def image_values(self, num_pixels: int) -> int: ...


class VQConfig(Config):
    """LlamaGen's image tokenizer (upstream: tokenizer/tokenizer_image/vq_model.py ModelArgs)."""

    kind: Literal["vq"] = "vq"
    codebook_size: Annotated[int, bounds.VOCAB] = 16384
    codebook_dim: Annotated[int, bounds.WIDTH] = 8
    channels: Annotated[int, bounds.CHANNELS] = Field(
        128, multiple_of=32, description="base width; a multiple of 32 for GroupNorm(32)"
    )
    encoder_multipliers: tuple[Annotated[int, bounds.MULTIPLIER], ...] = (1, 1, 2, 2, 4)
    decoder_multipliers: tuple[Annotated[int, bounds.MULTIPLIER], ...] = (1, 1, 2, 2, 4)
    num_res_blocks: Annotated[int, bounds.RES_BLOCKS] = 2
    latent_channels: Annotated[int, bounds.WIDTH] = Field(
        256, description="z_channels: width between encoder and quant_conv"
    )

    @model_validator(mode="after")
    def _check_levels(self) -> VQConfig:
        levels = len(self.encoder_multipliers)
        if levels not in bounds.LEVELS or len(self.decoder_multipliers) != levels:
            raise ValueError(
                f"{levels} encoder_multipliers and {len(self.decoder_multipliers)} decoder_multipliers; expected as "
                f"many of both, {bounds.LEVELS}"
            )
        return self

    @property
    def downsample(self) -> int:
        """Image pixels per token along each side."""
        return 2 ** (len(self.encoder_multipliers) - 1)

    def image_values(self, num_pixels: int) -> int:
        """Values of the largest map: the first and the last one are as large as the image."""
        return num_pixels * self.channels


# All kinds that a config.json may name: `VQConfig | OtherConfig`, told apart by `kind`.
TokenizerConfig = VQConfig
