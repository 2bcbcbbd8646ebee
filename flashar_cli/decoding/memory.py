"""How much memory decoding takes, before it starts.

Letters: B images of a batch, N = H*W cells, V codebook size.
"""

from __future__ import annotations

from flashar_cli.config import FLOAT_BYTES, RasterConfig
from flashar_cli.decoding.costs import Workload

# Tensors as large as the logits that are alive at once: those of both heads, the fused ones, and those of sampling.
NUM_LOGITS = 6


def decoding_bytes(config: RasterConfig, work: Workload, longest_step: int, num_caches: int, with_images: bool) -> int:
    """An estimate of the memory each image of a batch takes, whose rows are those of ``work``: so many caches, the
    logits of a step of ``longest_step`` cells, the image.
    """
    backbone, grid = config.backbone, work.grid
    positions = work.prefix_length + config.raster(grid).num_slots
    values = num_caches * work.rows * config.num_blocks * 2 * positions * backbone.num_kv_heads * backbone.head_dim
    logits = NUM_LOGITS * work.rows * longest_step * backbone.vocab_size * FLOAT_BYTES
    return values * work.weight_bytes + max(logits, config.image_bytes(grid) if with_images else 0)
