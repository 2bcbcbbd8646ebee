"""Every decoder by its name. Adding one means adding its line."""

from __future__ import annotations

from flashar_cli.config import ModelConfig
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.next_scale.decoder import FASTVAR, SCALE, TRUNCATE
from flashar_cli.decoding.static import FLASHAR, RASTER
from flashar_cli.errors import FlasharError

# The first that a model has is its default.
_DECODERS: tuple[Decoder, ...] = (SCALE, TRUNCATE, FASTVAR, FLASHAR, RASTER)
DECODERS = {decoder.name: decoder for decoder in _DECODERS}


def decoders_of(config: ModelConfig) -> list[Decoder]:
    """The decoders that a model has, its default first."""
    return [decoder for decoder in DECODERS.values() if decoder.obstacle(config) is None]


def get_decoder(name: str) -> Decoder:
    """Raises FlasharError for a name that is not registered."""
    if name not in DECODERS:
        raise FlasharError(f"--decoder is {name}; expected one of {', '.join(DECODERS)}")
    return DECODERS[name]


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
