"""Every decoder by its name. Adding one means adding its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flashar_cli.config import ModelConfig
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.diffusion import DiffusionDecoder
from flashar_cli.decoding.jacobi import JacobiDecoder
from flashar_cli.decoding.next_scale.decoder import FASTVAR, SCALE, TRUNCATE
from flashar_cli.decoding.static import FLASHAR, NAIVE, RASTER, zipar
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import WINDOW, decimal


class Sized(NamedTuple):
    """Decoders that differ by a number, which stands behind their name: ``zipar:4``."""

    make: Callable[[int], Decoder]
    default: int


# Windows are the defaults of the released samplers for LlamaGen; four forwards for a row of 16 tokens make the 64
# forwards of an image with which FlashAR's authors compare.
SIZED = {
    "zipar": Sized(zipar, 8),
    "jacobi": Sized(JacobiDecoder, 16),
    "block-diffusion": Sized(DiffusionDecoder, 4),
}
DIFFUSION = DiffusionDecoder(SIZED["block-diffusion"].default)
# The first that a model has is its default.
_DECODERS: tuple[Decoder, ...] = (SCALE, TRUNCATE, FASTVAR, FLASHAR, DIFFUSION, RASTER, NAIVE)
DECODERS = {decoder.name: decoder for decoder in _DECODERS}


def decoder_names() -> list[str]:
    """As help texts and messages show them."""
    return [*(name for name in DECODERS if ":" not in name), *(f"{name}[:N]" for name in SIZED)]


def decoders_of(config: ModelConfig) -> list[Decoder]:
    """The decoders that a model has and was trained for, its default first."""
    return [decoder for decoder in DECODERS.values() if decoder.trained and decoder.obstacle(config) is None]


def get_decoder(name: str) -> Decoder:
    """Raises FlasharError for a name that is not registered."""
    kind, _, size = name.partition(":")
    if name in DECODERS:
        return DECODERS[name]
    if kind in SIZED:
        number = decimal(size) if ":" in name else SIZED[kind].default
        if number is not None and number in WINDOW:
            return SIZED[kind].make(number)
    raise FlasharError(f"--decoder is {name}; expected one of {', '.join(decoder_names())}")


def choose_decoder(config: ModelConfig, name: str | None = None) -> Decoder:
    """The decoder of this name, or the model's default. Raises FlasharError where the name is unknown or the model does
    not have that decoder.
    """
    if name is None:
        return decoders_of(config)[0]
    decoder = get_decoder(name)
    reason = decoder.obstacle(config)
    if reason is not None:
        raise FlasharError(reason)
    return decoder
