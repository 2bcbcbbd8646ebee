"""Images to tokens and back: for each kind in ``config/tokenizer.py`` a network, and its decoder for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flashar_cli.config import TokenizerConfig
from flashar_cli.tokenizers.base import ImageTokenizer
from flashar_cli.tokenizers.ibq import IBQTokenizer
from flashar_cli.tokenizers.inference import InferenceDecoder
from flashar_cli.tokenizers.vq import VQTokenizer

__all__ = ["ImageTokenizer", "build_tokenizer", "inference_decoder"]

NETWORKS: dict[str, Any] = {"vq": VQTokenizer, "ibq": IBQTokenizer}
DECODERS: dict[type[ImageTokenizer], Any] = {VQTokenizer: InferenceDecoder, IBQTokenizer: InferenceDecoder}


def build_tokenizer(config: TokenizerConfig) -> ImageTokenizer:
    """The network of a tokenizer."""
    network: ImageTokenizer = NETWORKS[config.kind](config)
    return network


def inference_decoder(tokenizer: ImageTokenizer, dtype: torch.dtype) -> nn.Module:
    """The fastest known module from tokens int64 [B, H, W], not checked, to images [B, 3, h, w] of ``dtype``. The
    tokenizer must not be moved, cast or trained while it is in use.
    """
    decoder: nn.Module = DECODERS[type(tokenizer)](tokenizer, dtype)
    return decoder.eval()
