"""Fusion gates: how much of the horizontal prediction enters each target, g in [0, 1].

Letters: B batch, C target cells, D model dim, V codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flashar_cli.config import BackboneConfig, BranchConfig
from flashar_cli.nn.shards import fill


class Gate(nn.Module):
    """Gate logits [B, C, 1] of C targets from both heads' normed hidden states and logits; g is their sigmoid.
    ``corner`` bool [C, 1] is True for cell (0, 0), None where it is not among the targets.
    """

    def forward(
        self, h_BCD: Tensor, v_BCD: Tensor, logits_h_BCV: Tensor, logits_v_BCV: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        raise NotImplementedError

    def initialise(self, generator: torch.Generator) -> None:
        """Sets the weights so that g starts at 0.5 everywhere."""


class GateMLP(nn.Module):
    """``Linear(no bias) -> SiLU -> Linear(-> 1, bias)``."""

    def __init__(self, in_dim: int, inner_dim: int | None) -> None:
        super().__init__()
        assert inner_dim is not None, "checked by BranchConfig"
        self.fc1 = nn.Linear(in_dim, inner_dim, bias=False)
        self.fc2 = nn.Linear(inner_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.silu(self.fc1(x)))


class HiddenGate(Gate):
    """An MLP on ``[h; v]``, the normed hidden states [.., dim] of both heads (the paper's gate).

    With ``own_corner`` cell (0, 0), where v is no normed state of the branch, has a linear gate on h instead.
    """

    # Kept for parity: lxazjk/Emu3.5-FlashAR flashar/model/modeling_emu_flashar.py hv_gate_corner.

    def __init__(self, dim: int, inner_dim: int | None, own_corner: bool = False) -> None:
        super().__init__()
        self.mlp = GateMLP(2 * dim, inner_dim)
        self.corner = nn.Linear(dim, 1) if own_corner else None

    def forward(
        self, h_BCD: Tensor, v_BCD: Tensor, logits_h_BCV: Tensor, logits_v_BCV: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        gate = self.mlp(torch.cat([h_BCD, v_BCD], dim=-1))
        return gate if self.corner is None or corner is None else torch.where(corner, self.corner(h_BCD), gate)

    def initialise(self, generator: torch.Generator) -> None:
        first = self.mlp.fc1
        values = torch.empty(first.weight.shape, dtype=first.weight.dtype, device=generator.device)
        fill(first.weight, nn.init.normal_(values, std=1 / math.sqrt(first.in_features), generator=generator))
        for last in (self.mlp.fc2, self.corner):
            if last is not None:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)


class LogitsGate(HiddenGate):
    """An MLP on the normalised logits [.., dim] of both heads.

    Kept for parity: lxazjk/LlamaGen-FlashAR autoregressive/models/gpt.py _hv_gate.
    """

    def forward(
        self, h_BCD: Tensor, v_BCD: Tensor, logits_h_BCV: Tensor, logits_v_BCV: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        features = torch.cat([logits_h_BCV, logits_v_BCV], dim=-1).detach().float()
        features = torch.nan_to_num(features, nan=0.0, posinf=30.0, neginf=-30.0)
        centred = features - features.mean(dim=-1, keepdim=True)
        rms = centred.square().mean(dim=-1, keepdim=True).clamp_min(1e-6).sqrt()
        with torch.autocast(features.device.type, enabled=False):
            return self.mlp((centred / rms).clamp(-6.0, 6.0).to(self.mlp.fc1.weight.dtype))


class ScalarGate(Gate):
    """One learned value for all targets."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(
        self, h_BCD: Tensor, v_BCD: Tensor, logits_h_BCV: Tensor, logits_v_BCV: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        return self.logit.expand(*h_BCD.shape[:2], 1)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.logit)


class MeanGate(Gate):
    """g = 0.5. With the branch after the last block this is NAR."""

    def forward(
        self, h_BCD: Tensor, v_BCD: Tensor, logits_h_BCV: Tensor, logits_v_BCV: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        return h_BCD.new_zeros(*h_BCD.shape[:2], 1)


# One module for each kind in config.GATES.
MODULES: dict[str, Callable[[BranchConfig, BackboneConfig], Gate]] = {
    "hidden": lambda branch, backbone: HiddenGate(backbone.dim, branch.gate_dim, not branch.sees_prefix),
    "logits": lambda branch, backbone: LogitsGate(backbone.vocab_size, branch.gate_dim),
    "scalar": lambda branch, backbone: ScalarGate(),
    "mean": lambda branch, backbone: MeanGate(),
}


def build_gate(branch: BranchConfig, backbone: BackboneConfig) -> Gate:
    """The gate a branch config names."""
    return MODULES[branch.gate](branch, backbone)
