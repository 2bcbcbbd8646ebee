"""The FlashAR authors' adaptations of LlamaGen (lxazjk/LlamaGen-FlashAR)."""

from __future__ import annotations

from flashar_cli.config import BranchConfig
from flashar_cli.errors import FlasharError
from flashar_cli.families import nar
from flashar_cli.families.base import ConvertOptions
from flashar_cli.families.llamagen_layout import GATE_LOGIT, GATE_MLP, LlamaGenLayout
from flashar_cli.families.source import Source


class LlamaGenFlashAR(LlamaGenLayout):
    """LlamaGen with a branch and usually a gate. Files without a gate mean a fixed mean, and need ``--family``."""

    name = "llamagen-flashar"
    sign = f"gate keys {GATE_MLP}* or {GATE_LOGIT}"
    known = nar.PRESETS  # these are for 256 x 256 images too

    def recognises_parts(self, has_branch: bool, has_gate: bool) -> bool:
        return has_branch or has_gate

    def read_branch(self, source: Source, options: ConvertOptions, num_blocks: int) -> BranchConfig | None:
        layer, depth = options.branch_layer, self.read_depth(options, num_blocks)
        if layer is None or layer > num_blocks - depth:
            raise FlasharError(
                f"the weights of {source.path} don't tell where the branch starts; "
                f"pass --branch-layer M with 0 <= M <= {num_blocks - depth} (got {layer})"
            )
        if any(name.startswith(GATE_MLP) for name in source.state):
            gate_dim = source.shape(f"{GATE_MLP}0.weight", self.name)[0]
            return BranchConfig(layer=layer, depth=depth, gate="logits", gate_dim=gate_dim)
        return BranchConfig(layer=layer, depth=depth, gate="scalar" if GATE_LOGIT in source.state else "mean")
