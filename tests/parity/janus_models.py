"""Tiny random Janus models of the transformers library."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
BOS, PAD, BOI, GUIDANCE = 1, 0, 6, 5.0
SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "deep and narrow": {"width": 32, "layers": 5, "heads": 2, "codes": 64, "side": 3},
    "wide heads": {"width": 48, "heads": 2, "kv_heads": 2, "head_dim": 32, "theta": 500.0, "eps": 1e-3, "seed": 3},
    "grouped": {"width": 96, "layers": 2, "heads": 6, "kv_heads": 2, "inner": 56, "text": 57, "side": 2, "seed": 4},
}


def build_janus(
    width: int = 64,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    inner: int = 128,
    text: int = 99,
    codes: int = 128,
    side: int = 4,
    theta: float = 10000.0,
    eps: float = 1e-6,
    seed: int = 0,
) -> Any:
    torch.manual_seed(seed)
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=text,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            head_dim=head_dim or width // heads,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            rms_norm_eps=eps,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=2,
        ),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16 * side,
            patch_size=16,
            projection_dim=width,
            num_image_tokens=side * side,
            depth=1,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 2, 2, 2],
            num_res_blocks=1,
            num_patches=side,
            projection_dim=width,
            image_token_embed_dim=width,
            num_hidden_layers=2,
        ),
        image_token_id=5,
    )
    model = transformers.JanusForConditionalGeneration(config).eval()
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=2,
        guidance_scale=GUIDANCE,
        generation_kwargs={"boi_token_id": BOI},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4.0)  # as they start, every argmax is the same
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
