"""What an image tokenizer is, by kind. ``tokenizers/__init__.py`` has the network of each kind."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from flashar_cli.config.base import Config
from flashar_cli.inputs import bounds

Channels = Annotated[
    int, bounds.CHANNELS, Field(multiple_of=32, description="base width; a multiple of 32 for GroupNorm(32)")
]
Multipliers = tuple[
    Annotated[int, bounds.MULTIPLIER], ...
]  # of the base width, for each resolution from the image's on
LatentChannels = Annotated[int, bounds.WIDTH, Field(description="z_channels: width between encoder and quant_conv")]


class ImageTokenizerConfig(Protocol):
    """Facts of every tokenizer: a position of its latent is a square of ``downsample`` pixels a side; ``image_values``
    counts the values of its largest map for an image of so many pixels; ``in_words`` names its tokens.
    """

    @property
    def in_words(self) -> str: ...

    @property
    def downsample(self) -> int: ...

    def image_values(self, num_pixels: int) -> int: ...


class VQConfig(Config):
    """LlamaGen's image tokenizer (upstream: tokenizer/tokenizer_image/vq_model.py ModelArgs)."""

    kind: Literal["vq"] = "vq"
    codebook_size: Annotated[int, bounds.VOCAB] = 16384
    codebook_dim: Annotated[int, bounds.WIDTH] = 8
    channels: Channels = 128
    encoder_multipliers: Multipliers = (1, 1, 2, 2, 4)
    decoder_multipliers: Multipliers = (1, 1, 2, 2, 4)
    num_res_blocks: Annotated[int, bounds.RES_BLOCKS] = 2
    latent_channels: LatentChannels = 256

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
    def in_words(self) -> str:
        return f"{self.codebook_size} tokens"

    @property
    def downsample(self) -> int:
        """Image pixels per token along each side."""
        return 2 ** (len(self.encoder_multipliers) - 1)

    def image_values(self, num_pixels: int) -> int:
        """Values of the largest map."""
        return _largest_map(num_pixels, self.channels, self.encoder_multipliers, self.decoder_multipliers)


class IBQConfig(Config):
    """Emu3.5's image tokenizer (upstream: src/vision_tokenizer/ibq.py and the config.yaml beside its weights)."""

    kind: Literal["ibq"] = "ibq"
    codebook_size: Annotated[int, bounds.VOCAB] = 131072
    codebook_dim: Annotated[int, bounds.WIDTH] = 256
    channels: Channels = 256
    multipliers: Multipliers = (1, 1, 2, 2, 4)
    num_res_blocks: Annotated[int, bounds.RES_BLOCKS] = 4
    attention_levels: tuple[Annotated[int, bounds.LEVEL], ...] = Field(
        (4,), description="resolutions with attention blocks, 0 is the image's own; the middle always has one"
    )
    latent_channels: LatentChannels = 256

    @model_validator(mode="after")
    def _check_levels(self) -> IBQConfig:
        levels = len(self.multipliers)
        if levels not in bounds.LEVELS:
            raise ValueError(f"{levels} multipliers; expected {bounds.LEVELS}")
        if any(level >= levels for level in self.attention_levels):
            raise ValueError(f"attention_levels {list(self.attention_levels)}; expected levels in 0 .. {levels - 1}")
        return self

    @property
    def in_words(self) -> str:
        return f"{self.codebook_size} tokens"

    @property
    def downsample(self) -> int:
        """Image pixels per token along each side."""
        return 2 ** (len(self.multipliers) - 1)

    def image_values(self, num_pixels: int) -> int:
        """Values of the largest map."""
        return _largest_map(num_pixels, self.channels, self.multipliers, self.multipliers)


class _ScaleTokenizer(Config):
    """What multi-scale tokenizers share: levels of convolutions that are the same in encoder and decoder."""

    channels: Channels
    multipliers: Multipliers
    num_res_blocks: Annotated[int, bounds.RES_BLOCKS] = 2

    @model_validator(mode="after")
    def _check_levels(self) -> _ScaleTokenizer:
        if len(self.multipliers) not in bounds.LEVELS:
            raise ValueError(f"{len(self.multipliers)} multipliers; expected {bounds.LEVELS}")
        return self

    @property
    def downsample(self) -> int:
        """Image pixels per position of the latent along each side."""
        return 2 ** (len(self.multipliers) - 1)

    def image_values(self, num_pixels: int) -> int:
        """Values of the largest map."""
        return _largest_map(num_pixels, self.channels, self.multipliers, self.multipliers)


class MultiScaleVQConfig(_ScaleTokenizer):
    """VAR's image tokenizer: each scale's tokens are rows of one codebook (upstream: models/vqvae.py, quant.py)."""

    kind: Literal["multi-scale-vq"] = "multi-scale-vq"
    codebook_size: Annotated[int, bounds.VOCAB] = 4096
    codebook_dim: Annotated[int, bounds.WIDTH] = Field(32, description="Z: values of the latent at each position")
    channels: Channels = 160
    multipliers: Multipliers = (1, 1, 2, 2, 4)
    num_residuals: Annotated[int, bounds.NUM_SCALES] = Field(
        4, description="convolutions after upsampling, which neighbouring scales share"
    )
    residual_share: Annotated[float, bounds.SHARE] = Field(0.5, description="of the convolution in its output")

    @property
    def in_words(self) -> str:
        return f"{self.codebook_size} tokens"

    @property
    def latent_dim(self) -> int:
        """Values Z of the latent at each position."""
        return self.codebook_dim

    def image_values(self, num_pixels: int) -> int:
        """Values of the largest map. Queries, keys and values of the lowest level are one map."""
        lowest = 3 * self.channels * self.multipliers[-1] * num_pixels // self.downsample**2
        return max(super().image_values(num_pixels), lowest)


class BSQConfig(_ScaleTokenizer):
    """Infinity's image tokenizer: a token is the signs of the latent's values (upstream: bsq_vae/flux_vqgan.py,
    multiscale_bsq.py).
    """

    kind: Literal["bsq"] = "bsq"
    num_bits: Annotated[int, bounds.BITS] = Field(32, description="Z: values of the latent, and bits, at each position")
    channels: Channels = 128
    multipliers: Multipliers = (1, 2, 4, 4, 4)

    @property
    def in_words(self) -> str:
        return f"{self.num_bits} bits a position"

    @property
    def latent_dim(self) -> int:
        """Values Z of the latent at each position."""
        return self.num_bits


def _largest_map(num_pixels: int, channels: int, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> int:
    """Values of the largest map of levels so many times as wide as ``channels``. A decoder brings a map to the next
    level's resolution before it narrows it.
    """
    down = [num_pixels // 4**level * multiplier for level, multiplier in enumerate(encoder)]
    up = [num_pixels // 4 ** max(0, level - 1) * multiplier for level, multiplier in enumerate(decoder)]
    return channels * max(down + up)


# All kinds that the config.json of a raster model, and of a next-scale model, may name.
TokenizerConfig = Annotated[VQConfig | IBQConfig, Field(discriminator="kind")]
ScaleTokenizerConfig = Annotated[MultiScaleVQConfig | BSQConfig, Field(discriminator="kind")]
AnyTokenizerConfig = VQConfig | IBQConfig | MultiScaleVQConfig | BSQConfig
