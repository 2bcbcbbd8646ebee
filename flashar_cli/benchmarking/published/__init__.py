"""Samplers that were published with the models: their code is imported from a local clone, never part of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashar_cli.benchmarking.arms import UPSTREAM, split_arm
from flashar_cli.config import RasterConfig
from flashar_cli.grid import Grid

# LlamaGen's names of its prefixes and of their fields.
MODEL_TYPES = {"class": "c2i", "caption": "t2i"}
PREFIX_ARGS = {"num_classes": "num_classes", "feature_dim": "caption_dim"}


@dataclass(frozen=True)
class Publication:
    """A sampler as it was published, for the models of one family."""

    family: str
    repository: str
    decoder: str  # ours that decodes in the same order, with the same forwards, floor and greedy tokens
    obstacle: Callable[[RasterConfig, Grid], str | None]  # what it runs and the model is not; None where it runs it
    model_args: Callable[[RasterConfig, Grid], dict[str, Any]]  # upstream's ModelArgs
    folder: str = "."  # where the repository keeps the code
    branch_arg: str | None = None  # counts the branch's blocks in ModelArgs; None: upstream's model has no branch

    @property
    def clone(self) -> str:
        """For people: what ``--upstream`` expects."""
        return f"a clone of github.com/{self.repository}"


def _llamagen_obstacle(config: RasterConfig, grid: Grid) -> str | None:
    backbone, prefix = config.backbone, config.prefix
    if grid.height != grid.width:
        return f"square grids, this one is {grid}"
    if prefix.kind not in MODEL_TYPES:
        return f"models of {' or '.join(MODEL_TYPES)} prefixes, this one's is {prefix.kind}"
    if backbone.num_kv_heads != backbone.num_heads:
        return f"as many key heads as query heads, here are {backbone.num_kv_heads} and {backbone.num_heads}"
    return None


def _llamagen_args(config: RasterConfig, grid: Grid) -> dict[str, Any]:
    backbone, prefix = config.backbone, config.prefix
    facts = prefix.model_dump()
    return {
        "dim": backbone.dim,
        "n_layer": backbone.num_layers,
        "n_head": backbone.num_heads,
        "n_kv_head": backbone.num_kv_heads,
        # Upstream derives the width from these: any width below ffn_dim, rounded up to a multiple of it.
        "multiple_of": backbone.ffn_dim,
        "ffn_dim_multiplier": backbone.ffn_dim / math.floor(8 * backbone.dim / 3) / 2,
        "rope_base": backbone.rope_base,
        "norm_eps": backbone.norm_eps,
        "vocab_size": backbone.vocab_size,
        "block_size": grid.num_cells,
        "cls_token_num": prefix.longest,
        "model_type": MODEL_TYPES[prefix.kind],
        **{theirs: facts[ours] for ours, theirs in PREFIX_ARGS.items() if ours in facts},
    }


def _nar_obstacle(config: RasterConfig, grid: Grid) -> str | None:
    # Upstream's branch follows the last block, and both heads count the same.
    branch, num_layers = config.branch, config.backbone.num_layers
    if branch is not None and branch.gate == "mean" and branch.layer == num_layers:
        return _llamagen_obstacle(config, grid)
    got = "none" if branch is None else f"gate {branch.gate} at layer {branch.layer}"
    return f"a branch with gate mean at layer {num_layers}, this model's is {got}"


def _nar_args(config: RasterConfig, grid: Grid) -> dict[str, Any]:
    assert config.branch is not None, "refused by the obstacle"
    return {**_llamagen_args(config, grid), "medusa_attention_num": config.branch.depth}


LLAMAGEN = Publication("llamagen", "FoundationVision/LlamaGen", "raster", _llamagen_obstacle, _llamagen_args)
# One anti-diagonal a forward, with the mean of both heads.
NAR = Publication(
    "nar", "ThisisBillhe/NAR", "flashar", _nar_obstacle, _nar_args, "NAR-images", branch_arg="medusa_attention_num"
)
PUBLICATIONS: dict[str, Publication] = {publication.family: publication for publication in (LLAMAGEN, NAR)}


def decoder_of(arm: str, family: str) -> str:
    """The decoder of an arm; of upstream's sampler, the one of ours that decodes in the same order."""
    return PUBLICATIONS[family].decoder if arm == UPSTREAM else split_arm(arm)[0]
