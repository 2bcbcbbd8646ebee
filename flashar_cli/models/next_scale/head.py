"""The output head of a next-scale model, in float32.

Letters: R rows, S tokens, D model dim, O logits of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """A modulated norm and a linear layer, both computed in float32 whatever the dtype of the weights
    (FoundationVision/VAR models/basic_var.py AdaLNBeforeHead; FoundationVision/Infinity get_logits).
    """

    def __init__(self, dim: int, num_outputs: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, num_outputs)

    def modulate(self, vector_RD: Tensor) -> Tensor:
        """A gain and a shift, float32 [R, 2, 1, D], from the condition [R, D]."""
        with torch.autocast(vector_RD.device.type, enabled=False):
            scale_R1D, shift_R1D = _float_linear(self.modulation, F.silu(vector_RD.float()))[:, None].chunk(2, dim=-1)
            return torch.stack([1 + scale_R1D, shift_R1D], dim=1)

    def forward(self, x_RSD: Tensor, modulation_R21D: Tensor) -> Tensor:
        """Logits float32 [R, S, O] from the residual stream float32 [R, S, D] and what ``modulate`` made."""
        gain_R1D, shift_R1D = modulation_R21D.unbind(dim=1)
        with torch.autocast(x_RSD.device.type, enabled=False):
            normed_RSD = F.layer_norm(x_RSD, x_RSD.shape[-1:], eps=self.eps)
            return _float_linear(self.out, torch.addcmul(shift_R1D, normed_RSD, gain_R1D))


def _float_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())
