"""Small models that several test files share. Never imported by the package."""

from __future__ import annotations

import torch

from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    BSQConfig,
    CaptionMemory,
    CaptionPrefix,
    ClassPrefix,
    GridConfig,
    MultiScaleVQConfig,
    NextScaleConfig,
    Provenance,
    RasterConfig,
    Sampling,
    ScaleTransformerConfig,
    SchedulesConfig,
    TextPrefix,
    VQConfig,
)
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.next_scale.model import NextScaleModel
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
        model.initialise(seed, zero_head=False)
    return model


def var_like_config(shared: bool = False, cosine: bool = True) -> NextScaleConfig:
    """As VAR: maps of up to 3x5 tokens of 32 kinds, 10 classes, learned positions; three narrow blocks of two heads."""
    return NextScaleConfig(
        family="var",
        transformer=ScaleTransformerConfig(
            dim=32,
            num_layers=3,
            num_heads=2,
            ffn_dim=48,
            cosine_attention=cosine,
            shared_modulation=shared,
            num_levels=5,
        ),
        prefix=ClassPrefix(num_classes=10),
        grid=GridConfig(height=3, width=5),
        schedules=SchedulesConfig(longest=(((1, 1), (1, 2), (2, 3), (3, 4), (3, 5)),), lengths=(5,)),
        tokenizer=MultiScaleVQConfig(codebook_size=32, codebook_dim=4, channels=32, multipliers=(1, 1)),
        provenance=Provenance(tool_version="test"),
    )


def infinity_like_config(patch: int = 1) -> NextScaleConfig:
    """As Infinity: maps of up to 6x6, 7x4 or 3x8 tokens of three bits a position, or of their first four scales;
    captions of up to 6 features, rotary positions; three narrow blocks of two heads.
    """
    square = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6))
    tall = ((1, 1), (2, 1), (4, 2), (5, 3), (7, 4))
    wide = ((1, 1), (1, 3), (2, 4), (2, 6), (3, 8))
    return NextScaleConfig(
        family="infinity",
        transformer=ScaleTransformerConfig(
            dim=32, num_layers=3, num_heads=2, ffn_dim=48, shared_modulation=True, positions="rotary", num_levels=6
        ),
        prefix=CaptionMemory(feature_dim=16, length=6, pool_heads=4),
        grid=GridConfig(height=7, width=4),
        schedules=SchedulesConfig(longest=(square, tall, wide), lengths=(4, 5)),
        patch=patch,
        tokenizer=BSQConfig(num_bits=3, channels=32, multipliers=(1, 1)),
        provenance=Provenance(tool_version="test"),
    )


def build_scale_model(config: NextScaleConfig, seed: int = 0) -> NextScaleModel:
    """Random weights, large enough that every part matters."""
    model, generator = NextScaleModel(config), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False).normal_(std=0.2, generator=generator)
        if name.endswith("norm.weight"):
            parameter += 1
    return model.eval()
