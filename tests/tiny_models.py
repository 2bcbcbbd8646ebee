"""Small models that several test files share. Never imported by the package."""

from __future__ import annotations

import torch

from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    CaptionPrefix,
    ClassPrefix,
    GridConfig,
    Provenance,
    RasterConfig,
    Sampling,
    TextPrefix,
    VQConfig,
)
from flashar_cli.models.flashar import FlasharModel, initialise
from tests.tokenizers.text.vocabularies import SIZE

TINY_VQ = VQConfig(
    codebook_size=32,
    codebook_dim=4,
    channels=32,
    encoder_multipliers=(1, 1, 1),
    decoder_multipliers=(1, 1, 1),
    num_res_blocks=1,
    latent_channels=16,
)
CAPTION_PREFIX = CaptionPrefix(feature_dim=16, length=6)
PROMPT_PREFIX = TextPrefix(
    vocab_size=SIZE,
    template="<|extra_203|>{prompt}<|extra_100|><|image start|>{height}*{width}<|image token|>",
    uncond_template="<|extra_203|>assistant<|extra_100|><|image start|>{height}*{width}<|image token|>",
    pad_id=SIZE - 211,
    max_length=64,
)


def random_config(height: int = 4, width: int = 4, branch: bool = True, tokenizer: bool = True) -> RasterConfig:
    """Two narrow blocks, four query heads on two key and value heads, 32 tokens and 10 classes."""
    return RasterConfig(
        family="llamagen",
        backbone=BackboneConfig(dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=32),
        prefix=ClassPrefix(num_classes=10),
        grid=GridConfig(height=height, width=width),
        branch=BranchConfig(layer=1, depth=1, gate="hidden", gate_dim=64) if branch else None,
        tokenizer=TINY_VQ if tokenizer else None,
        generation=Sampling(cfg_scale=1.5, top_k=8),
        provenance=Provenance(tool_version="test"),
    )


def emu_like_config(height: int = 3, width: int = 5, depth: int = 1) -> RasterConfig:
    """As Emu3.5: prompts of 20 text tokens, one of which ends rows, and a branch that sees image tokens alone."""
    config = random_config(height, width, tokenizer=False).model_dump()
    config["backbone"] |= {"rope": "1d", "qk_norm": True, "head_dim": 24, "max_positions": 64}
    config["prefix"] = TextPrefix(vocab_size=20, line_end=5, max_length=9).model_dump()
    config["branch"] |= {"sees_prefix": False, "depth": depth}
    return RasterConfig.model_validate(config)


def build_model(config: RasterConfig, seed: int = 0) -> FlasharModel:
    """Random weights, output head included."""
    model = FlasharModel(config).eval()
    with torch.no_grad():
        initialise(model, seed, zero_head=False)
    return model
