"""How much memory decoding takes, before it starts.

Letters: B images of a batch, N = H*W cells, V codebook size.
"""

from __future__ import annotations

from flashar_cli.config import FLOAT_BYTES, RasterConfig
from flashar_cli.grid import Grid

# Tensors as large as the logits that are alive at once: those of both heads, the fused ones, and those of sampling.
NUM_LOGITS = 6


def decoding_bytes(
    config: RasterConfig,
    grid: Grid,
    prefix_length: int,
    itemsize: int,
    guided: bool,
    num_caches: int = 1,
    with_images: bool = True,
) -> int:
    """An estimate of the memory each image of a batch takes: ``num_caches`` caches of ``itemsize`` bytes a value, the
    logits of the longest step, the image. Guidance doubles the rows.
    """
    rows, backbone = 2 if guided else 1, config.backbone
    positions = prefix_length + config.raster(grid).num_slots
    caches = (
        num_caches * rows * config.num_blocks * 2 * positions * backbone.num_kv_heads * backbone.head_dim * itemsize
    )
    logits = NUM_LOGITS * rows * min(grid.height, grid.width) * backbone.vocab_size * FLOAT_BYTES
    return caches + max(logits, config.image_bytes(grid) if with_images else 0)
