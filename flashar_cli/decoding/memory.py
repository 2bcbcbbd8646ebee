"""How much memory decoding takes, before it starts.

Letters: B pictures of a batch, N = H*W cells, V codebook size.
"""

from __future__ import annotations

from flashar_cli.config import ModelConfig
from flashar_cli.grid import Grid
from flashar_cli.models.sizes import FLOAT_BYTES, picture_bytes

# Copies of the largest tensors that are alive at once: both heads' logits, the fused ones, and those of sampling.
NUM_LOGITS = 6


def decoding_bytes(
    config: ModelConfig, grid: Grid, itemsize: int, guided: bool, num_caches: int = 1, with_pictures: bool = True
) -> int:
    """An estimate of what each picture of a batch takes: caches of ``itemsize`` bytes a value, logits of the longest
    step, the picture. Guidance doubles the rows.
    """
    rows = 2 if guided else 1
    caches = num_caches * rows * cache_values(config, grid) * itemsize
    logits = NUM_LOGITS * rows * min(grid.height, grid.width) * config.backbone.vocab_size * FLOAT_BYTES
    return caches + max(logits, picture_bytes(config, grid) if with_pictures else 0)


def cache_values(config: ModelConfig, grid: Grid) -> int:
    """Keys and values that one row leaves in the cache: backbone blocks and those of the branch, prefix and cells."""
    backbone = config.backbone
    num_layers = backbone.num_layers + (config.branch.depth if config.branch else 0)
    positions = config.prefix.length + grid.num_cells
    return num_layers * 2 * positions * backbone.num_kv_heads * backbone.head_dim
