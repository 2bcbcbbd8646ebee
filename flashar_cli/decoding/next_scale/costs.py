"""What decoding a next-scale model takes at least, and how much memory.

Letters: B images, R rows (B, or 2B with guidance), S tokens of a map, D model dim.
"""

from __future__ import annotations

from flashar_cli.config import FLOAT_BYTES, NextScaleConfig, Pruning
from flashar_cli.decoding.costs import QUANTIZED_BYTES, SCALE_BYTES, ForwardCost, Workload

# Tensors as large as the residual stream of the last map, or as its logits, that are alive at once.
NUM_STREAMS, NUM_LOGITS = 8, 6


def scale_costs(config: NextScaleConfig, pruning: Pruning, work: Workload) -> list[ForwardCost]:
    """One cost for each scale that is decoded. Products with weights are those of the tokens that are forwarded, and
    attention counts: scores and sums over all keys that are kept. The first forward reads the condition too.
    """
    part, scales = config.transformer, config.scales(work.grid)
    dim, memory = part.dim, work.prefix_length if config.cross_attention else 0
    token_weights = part.token_weights(config.cross_attention)
    head_weights = dim * config.head_outputs
    others = config.num_weights - part.num_layers * token_weights - head_weights - config.table_weights
    keys = [0] * part.num_layers
    costs = []
    for scale, size in enumerate(scales[: pruning.num_decoded(len(scales))]):
        flops = 2 * size.num_cells * (head_weights + (config.token_dim * dim if scale else 0))
        for layer in range(part.num_layers):
            kept = size.num_cells
            if layer in pruning.layers(part.num_layers):
                kept = pruning.num_kept(scale, size.num_cells)
            keys[layer] += kept
            flops += 2 * kept * token_weights + 4 * dim * kept * (keys[layer] + memory)
        linear = part.num_layers * token_weights
        read_bytes = (linear + head_weights) * work.weight_bytes
        if work.quantized:
            outputs = part.num_layers * part.token_outputs(config.cross_attention)
            read_bytes = linear * QUANTIZED_BYTES + outputs * SCALE_BYTES + head_weights * work.weight_bytes
        if scale == 0:
            read_bytes += others * work.weight_bytes
            flops += 2 * config.condition_products(work.prefix_length)
        costs.append(ForwardCost(read_bytes, flops * work.rows))
    return costs


def scale_bytes(config: NextScaleConfig, pruning: Pruning, work: Workload, num_caches: int, with_images: bool) -> int:
    """An estimate of the memory each image of a batch takes, whose rows are those of ``work``: so many caches, what the
    largest map that is decoded needs, the image.
    """
    part, scales = config.transformer, config.scales(work.grid)
    decoded = scales[: pruning.num_decoded(len(scales))]
    num_keys = sum(size.num_cells for size in decoded) + (work.prefix_length if config.cross_attention else 0)
    prunes = any(scale < len(decoded) for scale, _ in pruning.ratios)  # a small image may have none of these scales
    cached = scales[pruning.source_scale].num_cells * 3 if prunes else 0
    caches = num_caches * work.rows * part.num_layers * part.dim * (2 * num_keys + cached) * work.weight_bytes
    largest = decoded[-1].num_cells
    streams = work.rows * largest * (NUM_STREAMS * part.dim * FLOAT_BYTES + part.ffn_dim * work.weight_bytes)
    logits = NUM_LOGITS * work.rows * largest * config.head_outputs * FLOAT_BYTES
    return caches + max(streams + logits, config.image_bytes(work.grid) if with_images else 0)
