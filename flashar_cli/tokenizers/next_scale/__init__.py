"""Image tokenizers of next-scale models: an image is a few maps of tokens, coarse to fine, whose sum is its latent."""

from __future__ import annotations

from typing import Any

from flashar_cli.config import ScaleTokenizerConfig
from flashar_cli.tokenizers.next_scale.binary import MultiScaleBSQ
from flashar_cli.tokenizers.next_scale.patch import patchify, unpatchify
from flashar_cli.tokenizers.next_scale.quantizer import ScaleQuantizer
from flashar_cli.tokenizers.next_scale.tokenizer import ScaleTokenizer
from flashar_cli.tokenizers.next_scale.vector import MultiScaleVQ

__all__ = ["ScaleQuantizer", "ScaleTokenizer", "build_quantizer", "patchify", "unpatchify"]

QUANTIZERS: dict[str, Any] = {"multi-scale-vq": MultiScaleVQ, "bsq": MultiScaleBSQ}


def build_quantizer(config: ScaleTokenizerConfig) -> ScaleQuantizer:
    """The quantizer of a tokenizer, without its networks."""
    quantizer: ScaleQuantizer = QUANTIZERS[config.kind](config)
    return quantizer
