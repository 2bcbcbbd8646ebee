"""The vertical branch: a few blocks beside the backbone's last ones, a norm, a head and the fusion gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashar_cli.config import BackboneConfig, BranchConfig
from flashar_cli.models.gate import build_gate
from flashar_cli.models.transformer import Transformer, build_head
from flashar_cli.nn.layers import Block, RMSNorm


class VerticalBranch(nn.Module):
    """Predicts the cell below from the hidden state before backbone block m (paper: section 3)."""

    def __init__(self, config: BranchConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.layer, self.sees_prefix = config.layer, config.sees_prefix
        self.blocks = nn.ModuleList(Block(backbone) for _ in range(config.depth))
        self.norm = RMSNorm(backbone.dim, backbone.norm_eps)
        self.head = build_head(backbone)
        self.gate = build_gate(config, backbone)

    def unseen(self, x_BPD: Tensor) -> Tensor:
        """What the head reads at prefix tokens that the blocks do not see: the branch's input as it is."""
        # Kept for parity: lxazjk/Emu3.5-FlashAR flashar/model/modeling_emu_flashar.py predicts the corner from it.
        return x_BPD

    def initialise_from(self, backbone: Transformer, generator: torch.Generator) -> None:
        """Block i becomes a copy of backbone block ``min(m + i, L - 1)``, norm and head copies of the backbone's; the
        gate starts at 0.5.
        """
        last = len(backbone.blocks) - 1
        for index, block in enumerate(self.blocks):
            block.load_state_dict(backbone.blocks[min(self.layer + index, last)].state_dict())
        self.norm.load_state_dict(backbone.norm.state_dict())
        self.head.load_state_dict(backbone.head.state_dict())
        self.gate.initialise(generator)
