"""Floating-point operations of training, computed from the config.

Letters: S positions a forward runs on (prefix and all cells but the last), N = H*W cells, D model dim.
"""

from __future__ import annotations

from flashar_cli.config import ModelConfig
from flashar_cli.config.recipe import NO_LORA, LoraSettings, StageSettings

# A backward pass has two products for each of the forward: the gradients of inputs and of weights.
FORWARD, FORWARD_AND_INPUTS, FORWARD_AND_BACKWARD = 1, 2, 3


def training_flops(config: ModelConfig, stage: StageSettings, lora: LoraSettings = NO_LORA) -> int:
    """Multiplications and additions of one image in one step of ``stage``.

    The usual count (arXiv 2204.02311, appendix B): 6 for each weight and token, and for attention 12 S^2 D for each
    block, the whole square, as a dense mask saves nothing. Frozen layers come before all trained ones and so need no
    backward: a third of that. Under the adapters of ``lora`` they need the gradients of their inputs: two
    thirds. Distillation adds a raster forward of the base. Embedding look-ups, norms, softmaxes and
    recomputed activations are not counted.
    """
    backbone, branch = config.backbone, config.branch
    num_cells = config.order_grid.num_cells
    num_positions = config.prefix.longest + num_cells - 1
    block = 2 * backbone.block_weights * num_positions + 4 * num_positions**2 * backbone.dim
    head = 2 * backbone.head_weights * num_cells
    base = backbone.num_layers * block + head + 2 * config.prefix.read_weights(backbone.dim) * config.prefix.longest
    if branch is None:
        return FORWARD_AND_BACKWARD * base
    added = branch.depth * block + head + 2 * config.gate_weights * num_cells
    teacher = base if stage.distill_weight else 0
    passes = FORWARD_AND_BACKWARD
    if stage.backbone_lr_factor == 0:
        passes = FORWARD
    elif lora.rank:
        passes, added = FORWARD_AND_INPUTS, added + 2 * lora.num_weights(backbone) * num_positions
    return passes * base + FORWARD_AND_BACKWARD * added + teacher
