"""Floating-point operations of training, computed from the config.

Letters: S positions a forward runs on (prefix and all tokens of the image but the last), N = H*W cells, A heads, E
their width.
"""

from __future__ import annotations

from flashar_cli.config import RasterConfig
from flashar_cli.config.recipe import NO_LORA, LoraSettings, StageSettings

# A backward pass has two products for each of the forward: the gradients of inputs and of weights.
FORWARD, FORWARD_AND_INPUTS, FORWARD_AND_BACKWARD = 1, 2, 3


def training_flops(config: RasterConfig, stage: StageSettings, lora: LoraSettings = NO_LORA) -> int:
    """Multiplications and additions of one image in one step of ``stage``.

    The usual count (arXiv 2204.02311, appendix B): 6 for each weight and token, and for attention 12 S^2 A E for each
    block, the whole square, as a dense mask saves nothing. Frozen layers come before all trained ones and so need no
    backward: a third of that. Under the adapters of ``lora`` they need the gradients of their inputs: two
    thirds. Distillation adds a raster forward of the base. Embedding look-ups, norms, softmaxes and
    recomputed activations are not counted.
    """
    backbone, branch, grid = config.backbone, config.branch, config.order_grid
    num_cells, prefix = grid.num_cells, config.prefix.longest

    def blocks(count: int, num_positions: int) -> int:
        attention = 4 * num_positions**2 * backbone.num_heads * backbone.head_dim
        return count * (2 * backbone.block_weights * num_positions + attention)

    def base(num_slots: int) -> int:
        projections = 2 * config.prefix.read_weights(backbone.dim) * prefix
        return blocks(backbone.num_layers, prefix + num_slots - 1) + head + projections

    head = 2 * backbone.head_weights * num_cells
    raster = base(config.raster(grid).num_slots)
    if config.diffusion is not None:  # the image twice, the first time without its last token and the last block
        return FORWARD_AND_BACKWARD * base(1 + config.diffusion.num_context(num_cells) + num_cells)
    if branch is None:
        return FORWARD_AND_BACKWARD * raster
    branch_positions = num_cells - 1 + (prefix if branch.sees_prefix else 0)
    trained = blocks(branch.depth, branch_positions) + head + 2 * config.gate_weights * num_cells
    teacher = raster if stage.distill_weight else 0
    passes = FORWARD_AND_BACKWARD
    if stage.backbone_lr_factor == 0:
        passes = FORWARD
    elif lora.rank:
        passes = FORWARD_AND_INPUTS
        trained += 2 * lora.num_weights(backbone) * (prefix + num_cells - 1)
    return passes * base(num_cells) + FORWARD_AND_BACKWARD * trained + teacher
