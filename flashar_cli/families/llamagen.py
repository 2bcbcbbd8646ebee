"""LlamaGen (FoundationVision/LlamaGen), and the FlashAR authors' adaptations of it (lxazjk/LlamaGen-FlashAR)."""

from __future__ import annotations

from flashar_cli.config import BackboneConfig, CaptionPrefix, ClassPrefix, GenerationDefaults, VQConfig
from flashar_cli.families.base import Family, HubFile, Preset
from flashar_cli.grid import Grid

IMAGENET = ClassPrefix(num_classes=1000)
VQ16 = VQConfig()
VQ8 = VQConfig(encoder_multipliers=(1, 2, 2, 4), decoder_multipliers=(1, 2, 2, 4))


def backbone(dim: int, num_layers: int, num_heads: int, vocab_size: int = 16384) -> BackboneConfig:
    """A published size; the feed-forward is 8/3 of the width, rounded up to a multiple of 256."""
    ffn_dim = -(-(8 * dim // 3) // 256) * 256
    return BackboneConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        ffn_dim=ffn_dim,
        vocab_size=vocab_size,
    )


SIZES = {
    "b": backbone(768, 12, 12),
    "l": backbone(1024, 24, 16),
    "xl": backbone(1280, 36, 20),
    "xxl": backbone(1536, 48, 24),
    "3b": backbone(3200, 24, 32),
}

_BLOCK_PARTS = (
    "attention.wqkv.weight",
    "attention.wo.weight",
    "feed_forward.w1.weight",
    "feed_forward.w2.weight",
    "feed_forward.w3.weight",
    "attention_norm.weight",
    "ffn_norm.weight",
)
BASE_KEYS = (
    ("cls_embedding.embedding_table.weight", "prefix.embedding.weight"),
    ("cls_embedding.uncond_embedding", "prefix.uncond_embedding"),
    ("cls_embedding.cap_proj.fc1.weight", "prefix.fc1.weight"),
    ("cls_embedding.cap_proj.fc2.weight", "prefix.fc2.weight"),
    ("tok_embeddings.weight", "backbone.embedding.weight"),
    *((f"layers.{{}}.{part}", f"backbone.blocks.{{}}.{part}") for part in _BLOCK_PARTS),
    ("norm.weight", "backbone.norm.weight"),
    ("output.weight", "backbone.head.weight"),
)
BRANCH_KEYS = (
    *((f"layers.{{}}.{part}", f"branch.blocks.{{}}.{part}") for part in _BLOCK_PARTS),
    ("medusa_norm.weight", "branch.norm.weight"),
    ("medusa_output.weight", "branch.head.weight"),
)
GATE_KEYS = (
    ("hv_gate_mlp.0.weight", "branch.gate.mlp.fc1.weight"),
    ("hv_gate_mlp.2.weight", "branch.gate.mlp.fc2.weight"),
    ("hv_gate_mlp.2.bias", "branch.gate.mlp.fc2.bias"),
    ("hv_mix_logit", "branch.gate.logit"),
)
# A table of positions that some files carry; it follows from the grid.
DROPPED_KEYS = ("freqs_cis",)


def class_preset(name: str, size: str, grid: Grid, cfg_scale: float, file: str) -> Preset:
    """A class-conditional LlamaGen of ImageNet."""
    return Preset(
        name=name,
        family="llamagen",
        backbone=SIZES[size],
        prefix=IMAGENET,
        grid=grid,
        tokenizer=VQ16,
        generation=GenerationDefaults(cfg_scale=cfg_scale),
        weights=HubFile("FoundationVision/LlamaGen", file),
        tokenizer_weights=HubFile("FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
    )


# Guidance: what LlamaGen's published FID used.
LLAMAGEN = Family(
    name="llamagen",
    presets=(
        class_preset("llamagen-b", "b", Grid(16, 16), 2.0, "c2i_B_256.pt"),
        class_preset("llamagen-l", "l", Grid(16, 16), 2.0, "c2i_L_256.pt"),
        class_preset("llamagen-xl", "xl", Grid(24, 24), 1.75, "c2i_XL_384.pt"),
        class_preset("llamagen-xxl", "xxl", Grid(24, 24), 1.75, "c2i_XXL_384.pt"),
        class_preset("llamagen-3b", "3b", Grid(24, 24), 1.65, "c2i_3B_384.pt"),
        Preset(
            name="llamagen-t2i-xl",
            family="llamagen",
            backbone=SIZES["xl"],
            prefix=CaptionPrefix(feature_dim=2048),
            grid=Grid(32, 32),
            tokenizer=VQ16,
            generation=GenerationDefaults(cfg_scale=7.5, top_k=1000),
            weights=HubFile("peizesun/llamagen_t2i", "t2i_XL_stage2_512.pt"),
            tokenizer_weights=HubFile("peizesun/llamagen_t2i", "vq_ds16_t2i.pt"),
        ),
    ),
    keys=BASE_KEYS,
    dropped_keys=DROPPED_KEYS,
)

LLAMAGEN_FLASHAR = Family(
    name="llamagen-flashar",
    presets=(),
    keys=(*BASE_KEYS, *BRANCH_KEYS, *GATE_KEYS),
    dropped_keys=DROPPED_KEYS,
)
