"""Emu3.5's published image tokenizer: its config, told by the shapes of its state dict, and its names of our tensors.
Nothing in the config.yaml beside it is needed: what the shapes don't tell is about training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from pydantic import ValidationError

from flashar_cli.config import IBQConfig, explain
from flashar_cli.files.lazy import Lazy
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.shapes import StateShapes

ValueT = TypeVar("ValueT")
TITLE = "an Emu3.5 tokenizer"
# The tensors that tell the config, and how many axes each has.
TELLING = {
    "quantize.embedding.weight": 2,
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "encoder.down.0.block.0.conv1.weight": 4,
}
MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}
RESOLUTIONS = {"encoder": "down", "decoder": "up"}


def read_state(state: Mapping[str, Lazy]) -> tuple[IBQConfig, dict[str, Lazy]]:
    """The config, and the tensors under our names. Their shapes are not checked beyond what tells the config. Raises
    FlasharError that lists missing and unexpected tensors: upstream's strict loading has no room for others either.
    """
    config = _config(state)
    with torch.device("meta"):
        names = _upstream_names(IBQTokenizer(config).state_dict())
    problems = [f"missing {name}" for name in names.values() if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in set(names.values())]
    if problems:
        raise _shapes(state).foreign(*sorted(problems))
    return config, {ours: state[theirs] for ours, theirs in names.items()}


def to_upstream(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Our tensors under upstream's names: the inverse of ``read_state``."""
    return {theirs: state[ours] for ours, theirs in _upstream_names(state).items()}


def _config(state: Mapping[str, Lazy]) -> IBQConfig:
    shapes = _shapes(state)
    shapes.require(TELLING)
    channels = shapes.channels("encoder.conv_in.weight")
    codebook_size, codebook_dim = shapes.shapes["quantize.embedding.weight"]
    multipliers = shapes.multipliers("encoder.down.", "block", channels)
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


def _shapes(state: Mapping[str, Lazy]) -> StateShapes:
    return StateShapes(TITLE, {name: tuple(tensor.shape) for name, tensor in state.items()})


def _upstream_names(ours: Iterable[str]) -> dict[str, str]:
    """Upstream's name of each of ours. It counts a decoder's levels from the image's own resolution down, we in the
    order in which they are computed.
    """
    names = list(ours)
    lowest = max(int(match[1]) for name in names if (match := re.match(r"decoder\.conv_blocks\.(\d+)\.", name)))

    def level(match: re.Match[str]) -> str:
        number = int(match[2]) if match[1] == "encoder" else lowest - int(match[2])
        return f"{match[1]}.{RESOLUTIONS[match[1]]}.{number}."

    def upstream(name: str) -> str:
        name = re.sub(r"(?<=coder\.mid\.)\d", lambda match: MIDDLE[match[0]], name)
        name = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.", level, name)
        return name.replace(".res.", ".block.")

    return {name: upstream(name) for name in names}
