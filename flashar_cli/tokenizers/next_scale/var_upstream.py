"""VAR's published image tokenizer: its config, told by the shapes of its state dict, and its names of our tensors.

The shapes do not tell what share of its output a residual convolution makes: a half in all that is published (upstream:
FoundationVision/VAR models/__init__.py, models/vqvae.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import ValidationError

from flashar_cli.config import MultiScaleVQConfig, explain
from flashar_cli.files.lazy import Lazy
from flashar_cli.tokenizers.next_scale.tokenizer import MultiScaleVQTokenizer
from flashar_cli.tokenizers.shapes import StateShapes
from flashar_cli.tokenizers.vqgan_names import renamed, upstream_names

TITLE = "a VAR tokenizer"
# How often each token was used at each scale in upstream's training. It is no parameter, but upstream's strict loading
# expects it; where its number of scales differs from the model's it is replaced.
STATISTICS = "quantize.ema_vocab_hit_SV"
CODEBOOK, RESIDUALS = "quantize.embedding.weight", "quantize.quant_resi.qresi_ls."
# The tensors that tell the config, and how many axes each has.
TELLING = {
    CODEBOOK: 2,
    f"{RESIDUALS}0.weight": 4,
    "encoder.conv_in.weight": 4,
    "encoder.down.0.block.0.conv1.weight": 4,
}


def read_state(state: Mapping[str, Lazy]) -> tuple[MultiScaleVQConfig, dict[str, Lazy]]:
    """The config, and the tensors under our names; the statistics are dropped. Shapes are not checked beyond what tells
    the config. Raises FlasharError that lists missing and unexpected tensors.
    """
    shapes = StateShapes.of(TITLE, state)
    config = _config(shapes)
    with torch.device("meta"):
        names = _names(MultiScaleVQTokenizer(config).state_dict())
    return config, renamed(shapes, {name: tensor for name, tensor in state.items() if name != STATISTICS}, names)


def to_upstream(state: Mapping[str, Any]) -> dict[str, Any]:
    """Our tensors under upstream's names, and statistics of nothing: the inverse of ``read_state``."""
    found = {theirs: state[ours] for ours, theirs in _names(state).items()}
    return {**found, STATISTICS: torch.zeros(1, found[CODEBOOK].shape[0])}


def _config(shapes: StateShapes) -> MultiScaleVQConfig:
    shapes.require(TELLING)
    channels = shapes.channels("encoder.conv_in.weight")
    codebook_size, codebook_dim = shapes.shapes[CODEBOOK]
    multipliers = shapes.multipliers("encoder.down.", "block.0.conv1.weight", channels)
    try:
        return MultiScaleVQConfig(
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            channels=channels,
            multipliers=multipliers,
            num_res_blocks=shapes.count("encoder.down.0.block."),
            num_residuals=shapes.count(RESIDUALS),
        )
    except ValidationError as error:
        raise shapes.foreign(explain(error)) from None


def _names(ours: Iterable[str]) -> dict[str, str]:
    """Upstream's name of each of ours."""
    return {
        name: theirs.replace("quantizer.residuals.", RESIDUALS).replace("quantizer.embedding.weight", CODEBOOK)
        for name, theirs in upstream_names(ours).items()
    }
