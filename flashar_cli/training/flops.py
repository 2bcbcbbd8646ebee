"""Floating-point operations of training, counted from the config.

Letters: S positions a forward runs on (prefix and all cells but the last), N = H*W cells, D model dim.
"""

from __future__ import annotations

from flashar_cli.config import ModelConfig
from flashar_cli.models.sizes import block_weights, gate_weights, head_weights, prefix_weights
from flashar_cli.recipe import StageSettings

# A backward pass multiplies twice where the forward multiplies once: gradients of inputs and of weights.
FORWARD, FORWARD_AND_BACKWARD = 1, 3


def training_flops(config: ModelConfig, stage: StageSettings) -> int:
    """Multiplications and additions of one picture in one step of ``stage``.

    The usual count (arXiv 2204.02311, appendix B): 6 for each weight and token it multiplies, and attention on top,
    12 S^2 D for a block: the whole square, which a dense mask doesn't make cheaper. What a stage freezes lies before
    everything that it trains, so it costs a forward, a third of that. A distilling stage adds a raster forward of the
    base. Neither embedding look-ups, norms and softmaxes are counted, nor what activation checkpointing computes again.
    """
    backbone, branch = config.backbone, config.branch
    num_cells = config.order_grid.num_cells
    num_positions = config.prefix.length + num_cells - 1
    block = 2 * block_weights(backbone) * num_positions + 4 * num_positions**2 * backbone.dim
    head = 2 * head_weights(backbone) * num_cells
    base = backbone.num_layers * block + head + 2 * prefix_weights(config) * config.prefix.length
    if branch is None:
        return FORWARD_AND_BACKWARD * base
    added = branch.depth * block + head + 2 * gate_weights(branch, backbone) * num_cells
    frozen = stage.backbone_lr_factor == 0
    teacher = base if stage.distill_weight else 0
    return (FORWARD if frozen else FORWARD_AND_BACKWARD) * base + FORWARD_AND_BACKWARD * added + teacher
