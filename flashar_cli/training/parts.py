"""A sum over parts of a sequence that frees the activations of each part before it computes the next.

Letters: B batch, N sequence, C length of a part, K terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# From the tensors [.., C, ..] of a part: the sums [K] of its terms, and a value [B, C] to be kept for each position.
PartSums = Callable[..., tuple[Tensor, Tensor]]


def weighted_sums(
    compute: PartSums,
    weights_K: Tensor,
    tensors: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    part_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``compute`` over all parts of ``part_length`` positions of ``tensors`` [.., N, ..], cut along their second axis.

    Returns the total of the weighted sums, the sums [K] themselves, and the kept values [B, N]. Only the total has
    gradients, of ``tensors`` and of the ``parameters`` that ``compute`` reads. The forward computes them, part by part,
    as fused linear cross-entropies do (Liger kernel, arXiv 2410.10989), so that nothing is computed twice.
    """
    given = (*tensors, *parameters)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given):
        total, sums_K, kept_BN = _WeightedSums.apply(compute, weights_K, part_length, len(tensors), *given)
        return total, sums_K, kept_BN
    parts = [compute(*_cut(tensors, part)) for part in _parts(tensors, part_length)]
    return _together(weights_K, parts)


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: PartSums, weights_K: Tensor, part_length: int, num_tensors: int, *given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors, parameters = given[:num_tensors], [p for p in given[num_tensors:] if p is not None and p.requires_grad]
        gradients = [torch.empty_like(t) if t is not None and t.requires_grad else None for t in tensors]
        # Gradients of weights are summed over the parts, for which low precision is too coarse.
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        done = []
        leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
        for part in _parts(tensors, part_length):
            with torch.enable_grad():
                given_part = _cut(leaves, part)
                sums_K, kept_BC = compute(*given_part)
            inputs = [tensor for tensor in given_part if tensor is not None and tensor.requires_grad]
            into = [place for place in _cut(gradients, part) if place is not None]
            # A backward pass runs without autocast, with the dtypes of the forward.
            with torch.autocast(weights_K.device.type, enabled=False):
                found = torch.autograd.grad(sums_K, [*inputs, *parameters], weights_K)
                for place, gradient in zip(into, found[: len(into)], strict=True):
                    place.copy_(gradient)
                for total, gradient in zip(sums, found[len(into) :], strict=True):
                    total += gradient
            done.append((sums_K.detach(), kept_BC.detach()))
        ctx.wanted = [tensor is not None and tensor.requires_grad for tensor in given]
        ctx.save_for_backward(*[gradient for gradient in gradients if gradient is not None], *sums)
        ctx.dtypes = [
            tensor.dtype for tensor, wanted in zip(given, ctx.wanted, strict=True) if wanted and tensor is not None
        ]
        results = _together(weights_K, done)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place, as a second copy of the heads' gradients would need much memory.
        scaled = (gradient.mul_(total).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return None, None, None, None, *(next(scaled) if wanted else None for wanted in ctx.wanted)


def _parts(tensors: Sequence[Tensor | None], part_length: int) -> list[slice]:
    length = next(tensor.shape[1] for tensor in tensors if tensor is not None)
    return [slice(first, first + part_length) for first in range(0, length, part_length)]


def _cut(tensors: Sequence[Tensor | None], part: slice) -> list[Tensor | None]:
    return [None if tensor is None else tensor[:, part] for tensor in tensors]


def _together(weights_K: Tensor, parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    sums_K = torch.stack([sums for sums, _ in parts]).sum(dim=0)
    return (sums_K * weights_K).sum(), sums_K, torch.cat([kept for _, kept in parts], dim=1)
