"""How many nats a model takes for each token of images that it was not trained on.

Letters: B images, N = H*W cells in decoding order, C of them at a time, H grid rows, W grid columns, L tokens of all
maps.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.data.tokens import TokenSet
from flashar_cli.decoding.static import StaticDecoder
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.models.targets import Targets, aligned_targets
from flashar_cli.training.losses import targets_at_once


class CodeLength(NamedTuple):
    """Nats per token: of all cells that a head predicts, of those in each row and in each column; NaN where it predicts
    none.
    """

    total: float
    by_row: list[float]
    by_column: list[float]

    @classmethod
    def of(cls, nats: NDArray[np.float64]) -> CodeLength:
        """Of the mean over images of each cell, [H, W]."""
        return cls(*(_mean(nats, axis) for axis in (None, 1, 0)))


@torch.inference_mode()
def code_lengths(model: FlasharModel, decoder: StaticDecoder, data: TokenSet, batch_size: int) -> dict[str, CodeLength]:
    """Of a raster model that is fed the tokens of ``data``: ``raster``, or with a branch ``fused``, ``horizontal`` and
    ``vertical``.
    """
    grid = model.config.order_grid
    order, sums = decoder.order(model.config, grid), dict[str, Tensor]()
    for start in range(0, len(data), batch_size):
        tokens_BHW, conditions = data.take(slice(start, start + batch_size)).tensors(model.device)
        if order.fillers:  # known step by step alone
            logits = decoder.logits(model, None, tokens_BHW, conditions, grid)
            nats_BHW = F.cross_entropy(logits.movedim(-1, 1), tokens_BHW, reduction="none")
            found = {decoder.name: order.from_raster(nats_BHW)}
        else:
            tokens_BN = order.from_raster(tokens_BHW)
            found = model(tokens_BN, conditions, order, read=partial(_nats, model, tokens_BN))
        for name, nats_BN in found.items():
            sums[name] = sums.get(name, 0.0) + nats_BN.double().sum(dim=0).cpu()
    if set(sums) == {"fused"}:
        sums = {decoder.name: sums["fused"]}
    return {name: CodeLength.of(order.to_raster(total / len(data)).numpy()) for name, total in sums.items()}


def _nats(model: FlasharModel, tokens_BN: Tensor, hidden: HiddenStates, targets: Targets) -> dict[str, Tensor]:
    """-ln p of each token under each head, [B, N]; NaN where a head does not predict the cell."""
    h_BND, v_BND = hidden.sources(targets)
    parts: list[dict[str, Tensor]] = []
    at_once = max(1, targets_at_once(model.config.backbone.vocab_size) // len(tokens_BN))
    for first in range(0, tokens_BN.shape[1], at_once):
        cells = slice(first, first + at_once)
        part = aligned_targets(
            targets.has_horizontal[cells],
            targets.has_vertical[cells],
            targets.uses_branch,
            None if targets.corner is None else targets.corner[cells, 0],
        )
        states = HiddenStates(h_BND[:, cells], None if v_BND is None else v_BND[:, cells])
        found, tokens_BC = model.fuse(states, part), tokens_BN[:, cells]
        nats = {"fused": _of(found.logits, tokens_BC)}
        if found.vertical is not None:
            nats["horizontal"] = _of(found.horizontal, tokens_BC).where(part.has_horizontal, torch.nan)
            nats["vertical"] = _of(found.vertical, tokens_BC).where(part.has_vertical, torch.nan)
        parts.append(nats)
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def _of(logits_BCV: Tensor, tokens_BC: Tensor) -> Tensor:
    return F.cross_entropy(logits_BCV.transpose(1, 2), tokens_BC, reduction="none")


def _mean(nats: NDArray[np.float64], axis: int | None) -> Any:
    """Without the cells that are NaN; NaN where all are."""
    known = ~np.isnan(nats)
    count = known.sum(axis=axis)
    total = np.where(known, nats, 0.0).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan)).tolist()
