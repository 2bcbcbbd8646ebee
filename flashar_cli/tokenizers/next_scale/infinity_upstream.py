"""Infinity's published image tokenizers: their config, told by the shapes of a state dict, and their names of our
tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from pydantic import ValidationError

from flashar_cli.config import BSQConfig, explain
from flashar_cli.files.lazy import Lazy
from flashar_cli.tokenizers.next_scale.tokenizer import BSQTokenizer
from flashar_cli.tokenizers.shapes import StateShapes
from flashar_cli.tokenizers.vqgan_names import renamed, upstream_names

ValueT = TypeVar("ValueT")
TITLE = "an Infinity tokenizer"
# Powers of two, which upstream's quantizer, known by two names, keeps for tokens that are numbers (upstream:
# multiscale_bsq.py BSQ.mask). Its loading does not miss them.
CONSTANTS = ("quantizer.lfq.mask", "quantize.lfq.mask")
# The tensors that tell the config, and how many axes each has.
TELLING = {
    "encoder.conv_in.conv.weight": 4,
    "encoder.conv_out.conv.weight": 4,
    "encoder.down.0.block.0.conv1.conv.weight": 4,
}


def read_state(state: Mapping[str, Lazy]) -> tuple[BSQConfig, dict[str, Lazy]]:
    """The config, and the tensors under our names; the constants are dropped. Shapes are not checked beyond what tells
    the config. Raises FlasharError that lists missing and unexpected tensors.
    """
    shapes = StateShapes.of(TITLE, state)
    config = _config(shapes)
    with torch.device("meta"):
        names = _names(BSQTokenizer(config).state_dict())
    return config, renamed(shapes, {name: tensor for name, tensor in state.items() if name not in CONSTANTS}, names)


def to_upstream(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Our tensors under upstream's names: the inverse of ``read_state``."""
    return {theirs: state[ours] for ours, theirs in _names(state).items()}


def _config(shapes: StateShapes) -> BSQConfig:
    shapes.require(TELLING)
    channels = shapes.channels("encoder.conv_in.conv.weight")
    multipliers = shapes.multipliers("encoder.down.", "block.0.conv1.conv.weight", channels)
    try:
        return BSQConfig(
            num_bits=shapes.shapes["encoder.conv_out.conv.weight"][0],
            channels=channels,
            multipliers=multipliers,
            num_res_blocks=shapes.count("encoder.down.0.block."),
        )
    except ValidationError as error:
        raise shapes.foreign(explain(error)) from None


def _names(ours: Iterable[str]) -> dict[str, str]:
    """Upstream's name of each of ours. It wraps each convolution and each norm in a module with that one part."""
    return {name: _wrapped(theirs) for name, theirs in upstream_names(ours).items()}


def _wrapped(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    part = "norm" if module.rpartition(".")[2].startswith("norm") else "conv"
    return f"{module}.{part}.{tensor}"
