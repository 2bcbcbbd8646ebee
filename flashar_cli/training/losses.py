"""Losses of teacher-forced predictions.

Letters: B batch, N = H*W cells in the order of the prediction, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from flashar_cli.models.flashar import Prediction
from flashar_cli.recipe import StageSettings


@dataclass(frozen=True)
class Losses:
    """Scalars, nats per token; None where there is no branch or the term is off. ``total`` is what is minimised.
    ``gate_mean`` and ``gate_std`` are of the gate values at cells that both heads predict, None where there are none.
    """

    total: Tensor
    fused: Tensor
    vertical: Tensor | None = None
    horizontal: Tensor | None = None
    distill: Tensor | None = None
    gate_entropy: Tensor | None = None
    gate_mean: Tensor | None = None
    gate_std: Tensor | None = None


def cross_entropy(logits_BNV: Tensor, codes_BN: Tensor, counted_N: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the cells where ``counted_N`` is true (all where None)."""
    if counted_N is not None:
        logits_BNV, codes_BN = logits_BNV[:, counted_N], codes_BN[:, counted_N]
    return F.cross_entropy(logits_BNV.flatten(0, 1), codes_BN.flatten())


def raster_loss(prediction: Prediction, codes_BN: Tensor) -> Losses:
    """Plain next-token training of a base."""
    loss = cross_entropy(prediction.logits, codes_BN)
    return Losses(total=loss, fused=loss)


def adaptation_loss(
    prediction: Prediction, codes_BN: Tensor, settings: StageSettings, teacher_BNV: Tensor | None
) -> Losses:
    """Fused cross-entropy plus the weighted auxiliary terms (paper: training objective).

    ``teacher_BNV`` are the frozen base's raster logits for the same target cells, in the same order.
    """
    targets = prediction.targets
    assert prediction.vertical is not None and prediction.gate is not None
    fused = cross_entropy(prediction.logits, codes_BN)
    vertical = cross_entropy(prediction.vertical, codes_BN, targets.has_vertical)
    horizontal = cross_entropy(prediction.horizontal, codes_BN, targets.has_horizontal)
    total = fused + settings.vertical_weight * vertical + settings.horizontal_weight * horizontal
    distill = entropy = None
    if settings.distill_weight:
        assert teacher_BNV is not None
        heat, below = settings.distill_temperature, targets.has_vertical
        student = (prediction.vertical[:, below] / heat).log_softmax(dim=-1).flatten(0, 1)
        teacher = (teacher_BNV[:, below] / heat).log_softmax(dim=-1).flatten(0, 1)
        # The factor heat^2 keeps gradients independent of the temperature (Hinton et al., arXiv 1503.02531).
        distill = F.kl_div(student, teacher, log_target=True, reduction="batchmean") * heat**2
        total = total + settings.distill_weight * distill
    if settings.gate_entropy_weight:
        entropy = gate_entropy(prediction)
        total = total - settings.gate_entropy_weight * entropy
    gates = gate_values(prediction).detach()
    mean, std = (gates.mean(), gates.std(correction=0)) if gates.numel() else (None, None)
    return Losses(total, fused, vertical, horizontal, distill, entropy, mean, std)


def gate_values(prediction: Prediction) -> Tensor:
    """[B, K] gate values at the K cells that both heads predict."""
    assert prediction.gate is not None
    both = prediction.targets.has_horizontal & prediction.targets.has_vertical
    return prediction.gate[:, both, 0]


def gate_entropy(prediction: Prediction) -> Tensor:
    """Mean binary entropy of the gates in bits: 1 is undecided, 0 collapsed."""
    gate = gate_values(prediction).clamp(1e-6, 1 - 1e-6)
    return -(gate * gate.log2() + (1 - gate) * (1 - gate).log2()).mean()
