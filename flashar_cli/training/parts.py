"""A sum over parts of a batch of sequences that frees the activations of each part before it computes the next.

Letters: B batch, N sequence, K terms; b rows and C positions of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# From the tensors [b or 1, C, ..] of a part: the sums [K] of its terms, and a value [b, C] to keep for each position.
PartSums = Callable[..., tuple[Tensor, Tensor]]
Part = tuple[slice, slice]  # rows and positions


def weighted_sums(
    compute: PartSums,
    weights_K: Tensor,
    tensors: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    at_once: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``compute`` over parts of ``tensors`` [B or 1, N, ..] of at most ``at_once`` positions, all rows together: the
    same few of every row, or where there are more rows than ``at_once``, one of each of so many rows.

    Returns the total of the weighted sums, the sums [K] themselves, and the kept values [B, N]. Only the total has
    gradients, of ``tensors`` and of the ``parameters`` that ``compute`` reads. The forward computes them, part by part,
    as fused linear cross-entropies do (Liger kernel, arXiv 2410.10989), so that nothing is computed twice.
    """
    given = (*tensors, *parameters)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given):
        total, sums_K, kept_BN = _WeightedSums.apply(compute, weights_K, at_once, len(tensors), *given)
        return total, sums_K, kept_BN
    return _together(weights_K, [(part, *compute(*_cut(tensors, part))) for part in _parts(tensors, at_once)])


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: PartSums, weights_K: Tensor, at_once: int, num_tensors: int, *given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors, parameters = given[:num_tensors], [p for p in given[num_tensors:] if p is not None and p.requires_grad]
        gradients = [torch.empty_like(t) if t is not None and t.requires_grad else None for t in tensors]
        # Gradients of weights are summed over the parts, for which low precision is too coarse.
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        done = []
        leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
        for part in _parts(tensors, at_once):
            with torch.enable_grad():
                given_part = _cut(leaves, part)
                sums_K, kept_bC = compute(*given_part)
            inputs = [tensor for tensor in given_part if tensor is not None and tensor.requires_grad]
            into = [place for place in _cut(gradients, part) if place is not None]
            # A backward pass runs without autocast, with the dtypes of the forward.
            with torch.autocast(weights_K.device.type, enabled=False):
                found = torch.autograd.grad(sums_K, [*inputs, *parameters], weights_K)
                for place, gradient in zip(into, found[: len(into)], strict=True):
                    place.copy_(gradient)
                for total, gradient in zip(sums, found[len(into) :], strict=True):
                    total += gradient
            done.append((part, sums_K.detach(), kept_bC.detach()))
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


def _parts(tensors: Sequence[Tensor | None], at_once: int) -> list[Part]:
    present = [tensor for tensor in tensors if tensor is not None]
    batch, length = max(len(tensor) for tensor in present), present[0].shape[1]
    rows, columns = min(batch, at_once), max(1, at_once // batch)
    return [
        (slice(top, top + rows), slice(left, left + columns))
        for left in range(0, length, columns)
        for top in range(0, batch, rows)
    ]


def _cut(tensors: Sequence[Tensor | None], part: Part) -> list[Tensor | None]:
    """What a part has of each tensor; a tensor of one row has it for all."""
    rows, columns = part
    return [None if t is None else t[:, columns] if len(t) == 1 else t[rows, columns] for t in tensors]


def _together(weights_K: Tensor, done: list[tuple[Part, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    sums_K = torch.stack([sums for _, sums, _ in done]).sum(dim=0)
    columns: dict[int, list[Tensor]] = {}
    for (_, positions), _, kept_bC in done:
        columns.setdefault(positions.start, []).append(kept_bC)
    kept_BN = torch.cat([torch.cat(rows) for rows in columns.values()], dim=1)
    return (sums_K * weights_K).sum(), sums_K, kept_BN
