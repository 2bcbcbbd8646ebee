"""NAR (ThisisBillhe/NAR): LlamaGen with one more block, a second head, and the mean of both predictions."""

from __future__ import annotations

from flashar_cli.config import BranchConfig, GenerationDefaults
from flashar_cli.families.base import Family, HubFile, Preset
from flashar_cli.families.llamagen import BASE_KEYS, BRANCH_KEYS, DROPPED_KEYS, IMAGENET, SIZES, VQ16
from flashar_cli.grid import Grid

NAR = Family(
    name="nar",
    presets=tuple(
        Preset(
            name=f"nar-{size}",
            family="nar",
            backbone=SIZES[size],
            prefix=IMAGENET,
            grid=Grid(16, 16),
            tokenizer=VQ16,
            generation=GenerationDefaults(cfg_scale=2.0),
            weights=HubFile(f"chenfeng1271/NAR-imagenet-256-{size.upper()}", "last_version.pt"),
            tokenizer_weights=HubFile("FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
            branch=BranchConfig(layer=SIZES[size].num_layers, gate="mean"),
        )
        for size in ("b", "l", "xl", "xxl")
    ),
    keys=(*BASE_KEYS, *BRANCH_KEYS),
    dropped_keys=DROPPED_KEYS,
)
