"""Images to tokens and back: for each kind in ``config/tokenizer.py`` a network, and its decoder for inference."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import nn

from flashar_cli.config import AnyTokenizerConfig, ScaleTokenizerConfig, TokenizerConfig
from flashar_cli.tokenizers.base import ImageTokenizer
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.inference import InferenceDecoder, LatentDecoder
from flashar_cli.tokenizers.next_scale import ScaleTokenizer
from flashar_cli.tokenizers.next_scale.tokenizer import BSQTokenizer, MultiScaleVQTokenizer
from flashar_cli.tokenizers.vq import VQTokenizer

__all__ = ["ImageTokenizer", "ScaleTokenizer", "build_tokenizer", "inference_decoder"]

NETWORKS: dict[str, Any] = {
    "vq": VQTokenizer,
    "ibq": IBQTokenizer,
    "multi-scale-vq": MultiScaleVQTokenizer,
    "bsq": BSQTokenizer,
}
DECODERS: dict[type, Any] = {
    VQTokenizer: InferenceDecoder,
    IBQTokenizer: InferenceDecoder,
    MultiScaleVQTokenizer: LatentDecoder,
    BSQTokenizer: LatentDecoder,
}


@overload
def build_tokenizer(config: TokenizerConfig) -> ImageTokenizer: ...
@overload
def build_tokenizer(config: ScaleTokenizerConfig) -> ScaleTokenizer: ...
def build_tokenizer(config: AnyTokenizerConfig) -> ImageTokenizer | ScaleTokenizer:
    """The network of a tokenizer."""
    network: ImageTokenizer | ScaleTokenizer = NETWORKS[config.kind](config)
    return network


def inference_decoder(tokenizer: ImageTokenizer | ScaleTokenizer, dtype: torch.dtype) -> nn.Module:
    """The fastest known module from tokens int64 [B, H, W], not checked, or from latents of several scales, to images
    [B, 3, h, w] of ``dtype``. The tokenizer must not be moved, cast or trained while it is in use.
    """
    decoder: nn.Module = DECODERS[type(tokenizer)](tokenizer, dtype)
    return decoder.eval()
