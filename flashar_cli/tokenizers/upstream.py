"""The config of a published LlamaGen tokenizer, read from the shapes of its state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from flashar_cli.config import VQConfig, explain
from flashar_cli.tokenizers.shapes import StateShapes

# A usage statistic of upstream training and its length. It is no parameter, but upstream's strict loading expects it
# (upstream: vq_model.py VectorQuantizer).
STATISTICS = {"quantize.codebook_used": 65536}
# The tensors that tell the config, and how many axes each has.
TELLING = {
    "quantize.embedding.weight": 2,
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "encoder.conv_blocks.0.res.0.conv1.weight": 4,
    "decoder.conv_blocks.0.res.0.conv1.weight": 4,
}


def config_from_state(shapes: Mapping[str, Sequence[int]]) -> VQConfig:
    """Every config field from the names and shapes of an upstream tokenizer's state dict. Whether its other tensors fit
    this config is not checked here. Raises FlasharError, in one line, where these give no config.
    """
    state = StateShapes("a LlamaGen tokenizer", shapes)
    state.require(TELLING)
    channels = state.channels("encoder.conv_in.weight")
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    try:
        return VQConfig(
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            channels=channels,
            encoder_multipliers=state.multipliers("encoder.conv_blocks.", "res.0.conv1.weight", channels),
            # upstream: decoder blocks run from the lowest resolution up, its multipliers go from the highest down
            decoder_multipliers=state.multipliers("decoder.conv_blocks.", "res.0.conv1.weight", channels)[::-1],
            num_res_blocks=state.count("encoder.conv_blocks.0.res."),
            latent_channels=shapes["encoder.conv_out.weight"][0],
        )
    except ValidationError as error:
        raise state.foreign(explain(error)) from None
