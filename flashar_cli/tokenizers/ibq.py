"""Emu3.5's image tokenizer, of index backpropagation quantisation (Shi et al. 2024, arXiv 2412.02692).

Upstream: baaivision/Emu3.5 src/vision_tokenizer/ibq.py
"""

from __future__ import annotations

from flashar_cli.config import IBQConfig
from flashar_cli.tokenizers.codebook import CodebookTokenizer
from flashar_cli.tokenizers.layers import Levels


class IBQTokenizer(CodebookTokenizer):
    """The search takes dot products with the codebook as it is, so a long vector wins more often (upstream:
    IndexPropagationQuantize). Encoder and decoder have the same levels.
    """

    config: IBQConfig

    def __init__(self, config: IBQConfig) -> None:
        levels = Levels(config.channels, config.multipliers, config.num_res_blocks, config.attention_levels)
        super().__init__(config, levels, levels, unit=False)
