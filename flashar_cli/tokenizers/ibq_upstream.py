"""Emu3.5's published image tokenizer: its config, told by the shapes of its state dict, and its names of our tensors.
Nothing in the config.yaml beside it is needed: what the shapes don't tell is about training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from pydantic import ValidationError

from flashar_cli.config import IBQConfig, explain
from flashar_cli.files.lazy import Lazy
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.shapes import StateShapes
from flashar_cli.tokenizers.vqgan_names import renamed, upstream_names

ValueT = TypeVar("ValueT")
TITLE = "an Emu3.5 tokenizer"
# The tensors that tell the config, and how many axes each has.
TELLING = {
    "quantize.embedding.weight": 2,
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "encoder.down.0.block.0.conv1.weight": 4,
}


def read_state(state: Mapping[str, Lazy]) -> tuple[IBQConfig, dict[str, Lazy]]:
    """The config, and the tensors under our names. Their shapes are not checked beyond what tells the config. Raises
    FlasharError that lists missing and unexpected tensors: upstream's strict loading has no room for others either.
    """
    shapes = StateShapes.of(TITLE, state)
    config = _config(shapes)
    with torch.device("meta"):
        names = upstream_names(IBQTokenizer(config).state_dict())
    return config, renamed(shapes, state, names)


def to_upstream(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Our tensors under upstream's names: the inverse of ``read_state``."""
    return {theirs: state[ours] for ours, theirs in upstream_names(state).items()}


def _config(shapes: StateShapes) -> IBQConfig:
    shapes.require(TELLING)
    channels = shapes.channels("encoder.conv_in.weight")
    codebook_size, codebook_dim = shapes.shapes["quantize.embedding.weight"]
    multipliers = shapes.multipliers("encoder.down.", "block.0.conv1.weight", channels)
    try:
        return IBQConfig(
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            channels=channels,
            multipliers=multipliers,
            num_res_blocks=shapes.count("encoder.down.0.block."),
            attention_levels=tuple(
                level for level in range(len(multipliers)) if shapes.count(f"encoder.down.{level}.attn.")
            ),
            latent_channels=shapes.shapes["encoder.conv_out.weight"][0],
        )
    except ValidationError as error:
        raise shapes.foreign(explain(error)) from None
