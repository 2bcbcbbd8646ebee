"""LlamaGen's image tokenizer. Parameter names are the upstream ones, so published files load without a key table.

Upstream: FoundationVision/LlamaGen tokenizer/tokenizer_image/vq_model.py
"""

from __future__ import annotations

from flashar_cli.config import VQConfig
from flashar_cli.tokenizers.codebook import CodebookTokenizer
from flashar_cli.tokenizers.layers import Levels


class VQTokenizer(CodebookTokenizer):
    """Normalises latents and codebook, both in the search and in decoding (upstream: VectorQuantizer,
    codebook_l2_norm). Only at the lowest resolution is there attention.
    """

    config: VQConfig

    def __init__(self, config: VQConfig) -> None:
        encoder, decoder = (
            Levels(config.channels, multipliers, config.num_res_blocks, attention=(len(multipliers) - 1,))
            for multipliers in (config.encoder_multipliers, config.decoder_multipliers)
        )
        super().__init__(config, encoder, decoder, unit=True)
