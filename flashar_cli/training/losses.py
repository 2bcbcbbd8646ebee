"""Losses from the hidden states of a forward. Heads and losses are computed for a few targets at a time.

Letters: B batch, N = H*W cells in the order of the forward, C of them at a time, D model dim, V codebook size, K terms.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config.recipe import StageSettings
from flashar_cli.models.flashar import FlasharModel, HiddenStates, Prediction
from flashar_cli.models.targets import Targets, aligned_targets
from flashar_cli.training.parts import PartSums, weighted_sums

# Logits [B, N, V] of all heads would take most of a step's memory. This many targets are enough for a fast matrix
# product, and this many float32 logits, 256 MiB, are small compared to the weights.
TARGETS_AT_ONCE = 1024
LOGITS_AT_ONCE = 2**26
NOT_COUNTED = -100


class Losses(NamedTuple):
    """Scalars, nats per token; None where there is no branch or the term is off. ``total`` is minimised.
    ``gate_mean`` and ``gate_std`` are over the cells that both heads predict; ``gate`` [B, N] has the gates of all
    cells, without gradients.
    """

    total: Tensor
    fused: Tensor
    vertical: Tensor | None = None
    horizontal: Tensor | None = None
    distill: Tensor | None = None
    gate_entropy: Tensor | None = None
    gate_mean: Tensor | None = None
    gate_std: Tensor | None = None
    gate: Tensor | None = None


SCALARS = Losses._fields[:-1]


def losses_of(
    model: FlasharModel,
    hidden: HiddenStates,
    targets: Targets,
    tokens_BN: Tensor,
    settings: StageSettings,
    teacher_BND: Tensor | None = None,
    compiled: bool = False,
) -> Losses:
    """Cross-entropy of the next token; with the branch, of the fused prediction plus the weighted auxiliary terms
    (paper: training objective).

    The model's forward calls this as its ``read``. Cells whose token is ``NOT_COUNTED`` count in no loss; with a branch
    there are none. ``teacher_BND`` are the normed hidden states from which the frozen
    base predicts the same cells in raster order. Nothing waits for the device.
    """
    h_BND, v_BND = hidden.sources(targets)
    across, below = targets.has_horizontal[None], targets.has_vertical[None]
    corner = None if targets.corner is None else targets.corner[None, :, 0]
    tensors = (h_BND, v_BND, tokens_BN, across, below, corner, teacher_BND)
    modules: list[nn.Module] = [model.backbone.head]
    counts, weights = [(tokens_BN != NOT_COUNTED).sum().clamp(min=1)], [1.0]
    if model.branch is not None and targets.uses_branch:
        modules += [model.branch.head, model.branch.gate]
        counted_below = _of_branch(model, below, corner)
        cells = (counted_below, across, counted_below, across & below)
        counts += [len(tokens_BN) * counted.sum().clamp(min=1) for counted in cells]
        weights += [settings.vertical_weight, settings.horizontal_weight, settings.distill_weight]
        weights += [-settings.gate_entropy_weight]
    counts_K = torch.stack(counts)
    weights_K = torch.stack([weight / count for weight, count in zip(weights, counts, strict=True)])
    compute: PartSums = partial(_compiled_sums() if compiled else part_sums, model, settings)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    at_once = targets_at_once(model.config.backbone.vocab_size)
    total, sums_K, gate_BN = weighted_sums(compute, weights_K, tensors, parameters, at_once)
    if len(modules) == 1:
        return Losses(total, total.detach())
    fused, vertical, horizontal, distill, entropy = (sums_K / counts_K).unbind()
    return Losses(
        total,
        fused,
        vertical,
        horizontal,
        distill if settings.distill_weight else None,
        entropy if settings.gate_entropy_weight else None,
        *gate_statistics(gate_BN, targets)[:2],
        gate_BN,
    )


def targets_at_once(vocab_size: int) -> int:
    """How many targets, of all images together, have their logits [.., V] in memory at a time."""
    return max(1, min(TARGETS_AT_ONCE, LOGITS_AT_ONCE // vocab_size))


def part_sums(
    model: FlasharModel,
    settings: StageSettings,
    h_BCD: Tensor,
    v_BCD: Tensor | None,
    tokens_BC: Tensor,
    across_1C: Tensor,
    below_1C: Tensor,
    corner_1C: Tensor | None,
    teacher_BCD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums [K] of the terms over some targets, given the hidden states that predict each, and their gates [B, C].

    ``across_1C`` and ``below_1C`` say which targets the horizontal and the vertical head predict, ``corner_1C`` which
    is the cell (0, 0).
    """
    corner = None if corner_1C is None else corner_1C[0]
    targets = aligned_targets(across_1C[0], below_1C[0], v_BCD is not None, corner)
    prediction = model.fuse(HiddenStates(h_BCD, v_BCD), targets)
    fused = cross_entropy(prediction.logits, tokens_BC)
    if prediction.vertical is None or prediction.gate is None:
        return fused[None], torch.ones_like(tokens_BC, dtype=torch.float32)
    logits_h = prediction.horizontal if settings.horizontal_weight else prediction.horizontal.detach()
    gate_BC = prediction.gate[..., 0]
    vertical_1C, off = _of_branch(model, below_1C, corner_1C), torch.zeros_like(fused)
    terms = (
        fused,
        cross_entropy(prediction.vertical, tokens_BC, vertical_1C),
        cross_entropy(logits_h, tokens_BC, across_1C),
        _distillation(model, settings, prediction, teacher_BCD, vertical_1C) if settings.distill_weight else off,
        _gate_entropy(gate_BC, across_1C & below_1C) if settings.gate_entropy_weight else off,
    )
    return torch.stack(terms), gate_BC


def _of_branch(model: FlasharModel, below_1C: Tensor, corner_1C: Tensor | None) -> Tensor:
    """The cells that the vertical terms count: those that the vertical head predicts, without the corner where the
    branch does not see the prefix, so that the head reads no state of the branch there.
    """
    assert model.branch is not None
    if corner_1C is None or model.branch.sees_prefix:
        return below_1C
    return below_1C & ~corner_1C


def cross_entropy(logits_BCV: Tensor, tokens_BC: Tensor, counted_1C: Tensor | None = None) -> Tensor:
    """Summed cross-entropy of the targets for which ``counted_1C`` is true (all where None)."""
    if counted_1C is not None:
        tokens_BC = tokens_BC.masked_fill(~counted_1C, NOT_COUNTED)
    return F.cross_entropy(logits_BCV.flatten(0, 1), tokens_BC.flatten(), ignore_index=NOT_COUNTED, reduction="sum")


def gate_statistics(gate_BN: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and mean entropy of the gates at cells that both heads predict."""
    both_1N = (targets.has_horizontal & targets.has_vertical)[None]
    count = len(gate_BN) * both_1N.sum()
    mean = (gate_BN * both_1N).sum() / count
    deviation = ((gate_BN - mean).square() * both_1N).sum() / count
    return mean, deviation.sqrt(), _gate_entropy(gate_BN, both_1N) / count


def _distillation(
    model: FlasharModel, settings: StageSettings, prediction: Prediction, teacher_BCD: Tensor | None, below_1C: Tensor
) -> Tensor:
    assert prediction.vertical is not None and teacher_BCD is not None
    heat = settings.distill_temperature
    with torch.no_grad():
        teacher = (model.backbone.head(teacher_BCD).float() / heat).log_softmax(dim=-1)
    student = (prediction.vertical / heat).log_softmax(dim=-1)
    divergence_BC = F.kl_div(student, teacher, log_target=True, reduction="none").sum(dim=-1)
    # The factor heat^2 keeps gradients independent of the temperature (Hinton et al., arXiv 1503.02531).
    return torch.where(below_1C, divergence_BC, 0.0).sum() * heat**2


def _gate_entropy(gate_BC: Tensor, both_1C: Tensor) -> Tensor:
    """Summed binary entropy in bits: 1 is undecided, 0 collapsed."""
    gate = gate_BC.clamp(1e-6, 1 - 1e-6)
    return -((gate * gate.log2() + (1 - gate) * (1 - gate).log2()) * both_1C).sum()


@cache
def _compiled_sums() -> PartSums:
    return torch.compile(part_sums, dynamic=False)
