"""The vertical branch: a few blocks beside the backbone's last ones, a norm, a head and the fusion gate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flashar_cli.config import BackboneConfig, BranchConfig
from flashar_cli.models.gate import build_gate
from flashar_cli.models.transformer import build_head
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

    def origins(self, num_layers: int) -> dict[str, str]:
        """For each tensor of the branch but the gate's, which one of a backbone of L blocks it starts as a copy of:
        block i of backbone block ``min(m + i, L - 1)``, norm and head of the backbone's.
        """
        found = {}
        for name in self.state_dict():
            part, *rest = name.split(".")
            if part == "blocks":
                rest[0] = str(min(self.layer + int(rest[0]), num_layers - 1))
            if part != "gate":
                found[name] = ".".join((part, *rest))
        return found

    @torch.no_grad()
    def initialise_from(self, backbone: Mapping[str, Tensor], num_layers: int, generator: torch.Generator) -> None:
        """Copies what ``origins`` says of a backbone's tensors; the gate starts at 0.5. Sharded ones stay sharded."""
        own = self.state_dict()
        for name, origin in self.origins(num_layers).items():
            own[name].copy_(backbone[origin])
        self.gate.initialise(generator)
