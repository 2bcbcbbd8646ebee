"""LlamaGen (FoundationVision/LlamaGen)."""

from __future__ import annotations

from flashar_cli.config import BranchConfig, CaptionPrefix, Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, HubFiles, Preset, RasterFacts
from flashar_cli.families.llamagen_layout import IMAGENET, SIZES, VQ16, LlamaGenLayout
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid


def class_preset(name: str, size: str, grid: Grid, cfg_scale: float, file: str) -> Preset[RasterFacts]:
    """A class-conditional LlamaGen of ImageNet."""
    return Preset(
        name=name,
        facts=RasterFacts(
            family="llamagen",
            backbone=SIZES[size],
            prefix=IMAGENET,
            grid=grid,
            tokenizer=VQ16,
            generation=Sampling(cfg_scale=cfg_scale),
        ),
        weights=HubFiles("FoundationVision/LlamaGen", (file,)),
        tokenizer_weights=HubFiles("FoundationVision/LlamaGen", ("vq_ds16_c2i.pt",)),
    )


# The guidance is that of LlamaGen's published FID.
PRESETS = (
    class_preset("llamagen-b", "b", Grid(16, 16), 2.0, "c2i_B_256.pt"),
    class_preset("llamagen-l", "l", Grid(16, 16), 2.0, "c2i_L_256.pt"),
    class_preset("llamagen-xl", "xl", Grid(24, 24), 1.75, "c2i_XL_384.pt"),
    class_preset("llamagen-xxl", "xxl", Grid(24, 24), 1.75, "c2i_XXL_384.pt"),
    class_preset("llamagen-3b", "3b", Grid(24, 24), 1.65, "c2i_3B_384.pt"),
    Preset(
        name="llamagen-t2i-xl",
        facts=RasterFacts(
            family="llamagen",
            backbone=SIZES["xl"],
            prefix=CaptionPrefix(feature_dim=2048),
            grid=Grid(32, 32),
            tokenizer=VQ16,
            generation=Sampling(cfg_scale=7.5, top_k=1000),
        ),
        weights=HubFiles("peizesun/llamagen_t2i", ("t2i_XL_stage2_512.pt",)),
        tokenizer_weights=HubFiles("peizesun/llamagen_t2i", ("vq_ds16_t2i.pt",)),
    ),
)


class LlamaGen(LlamaGenLayout):
    """Raster models. With a branch of ours they are written in the FlashAR authors' layout."""

    name = "llamagen"
    sign = "no medusa_* keys"
    presets = known = PRESETS

    def recognises_parts(self, has_branch: bool, has_gate: bool) -> bool:
        return not has_branch and not has_gate

    def read_branch(self, source: Source, options: ConvertOptions, num_blocks: int) -> BranchConfig | None:
        for option, value in {"--branch-layer": options.branch_layer, "--branch-depth": options.branch_depth}.items():
            if value is not None:
                raise FlasharError(f"{option} {value} was passed, but {source.path} has no branch")
        return None
