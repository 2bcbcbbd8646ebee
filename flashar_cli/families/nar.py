"""NAR (ThisisBillhe/NAR): LlamaGen with one more block, a second head, and the mean of both predictions."""

from __future__ import annotations

from flashar_cli.config import BranchConfig, Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, HubFiles, Preset, RasterFacts
from flashar_cli.families.llamagen_layout import IMAGENET, SIZES, VQ16, LlamaGenLayout
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid

PRESETS = tuple(
    Preset(
        name=f"nar-{size}",
        facts=RasterFacts(
            family="nar",
            backbone=SIZES[size],
            prefix=IMAGENET,
            grid=Grid(16, 16),
            tokenizer=VQ16,
            generation=Sampling(cfg_scale=2.0),
            branch=BranchConfig(layer=SIZES[size].num_layers, gate="mean"),
        ),
        weights=HubFiles(f"chenfeng1271/NAR-imagenet-256-{size.upper()}", ("last_version.pt",)),
        tokenizer_weights=HubFiles("FoundationVision/LlamaGen", ("vq_ds16_c2i.pt",)),
    )
    for size in ("b", "l", "xl", "xxl")
)


class NAR(LlamaGenLayout):
    """The branch starts after the last block."""

    name = "nar"
    sign = "medusa_norm and medusa_output without a gate"
    presets = known = PRESETS

    def recognises_parts(self, has_branch: bool, has_gate: bool) -> bool:
        return has_branch and not has_gate

    def read_branch(self, source: Source, options: ConvertOptions, num_blocks: int) -> BranchConfig | None:
        depth = self.read_depth(options, num_blocks)
        last = num_blocks - depth
        if options.branch_layer not in (None, last):
            raise FlasharError(
                f"--branch-layer is {options.branch_layer}; in NAR the branch follows the last block {last}"
            )
        return BranchConfig(layer=last, depth=depth, gate="mean")
