"""The least time a decoder can take: every forward reads the weights once and multiplies them with its rows.

Letters: B images, R rows (B, or 2B with guidance), C cells of a step, D model dim, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashar_cli.config import ModelConfig
from flashar_cli.grid import NO_SOURCE, Order
from flashar_cli.models.sizes import block_weights, gate_weights, head_weights, linear_sizes, prefix_weights

# What --quantize leaves of a linear layer: a byte for each weight and, for each output, a float32 scale.
QUANTIZED_BYTES, SCALE_BYTES = 1, 4


@dataclass(frozen=True)
class Rates:
    """What this machine reaches: a plain copy (bytes read plus bytes written) and a square matrix product."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


@dataclass(frozen=True)
class ForwardCost:
    """Weight bytes one forward reads, and its multiplications and additions with weights."""

    read_bytes: int
    flops: int

    def floor_s(self, rates: Rates) -> float:
        """Reading and computing overlap at best, so the slower of the two counts."""
        return max(self.read_bytes / rates.copy_bytes_per_s, self.flops / rates.matmul_flops_per_s)


def forward_costs(
    config: ModelConfig, order: Order, rows_per_cell: int, bytes_per_weight: int, quantized: bool = False
) -> list[ForwardCost]:
    """One cost per step of ``order``; ``rows_per_cell`` is B, or 2B with guidance. With ``quantized`` the linear layers
    of blocks and heads take 8 bits a weight and a scale for each output.

    Counted are blocks, heads and, where the order needs it, the branch with its head and gate; not the embedding
    table, of which a step reads a few rows. The blocks run on the cells of the step before (step 0: on the prefix),
    the heads on the cells of the step itself.
    """
    backbone, branch = config.backbone, config.branch
    with_branch = any(source != NO_SOURCE for source in order.vertical_source)
    if with_branch:
        assert branch is not None, "the order needs a vertical branch"
    num_blocks = backbone.num_layers + (branch.depth if with_branch and branch else 0)
    num_heads = 2 if with_branch else 1
    blocks, heads = block_weights(backbone) * num_blocks, head_weights(backbone) * num_heads
    weights, outputs = linear_sizes(backbone, num_blocks, num_heads)
    saved = weights * (bytes_per_weight - QUANTIZED_BYTES) - outputs * SCALE_BYTES if quantized else 0
    heads += gate_weights(branch, backbone) if with_branch and branch else 0
    costs = []
    for step in range(order.num_steps):
        prefix = prefix_weights(config) if step == 0 else 0
        inputs = len(order.steps[step - 1]) if step > 0 else config.prefix.length
        products = (blocks + prefix) * inputs + heads * len(order.steps[step])
        read_bytes = (blocks + heads + prefix) * bytes_per_weight - saved
        costs.append(ForwardCost(read_bytes, 2 * products * rows_per_cell))
    return costs


def floor_s(costs: list[ForwardCost], rates: Rates) -> float:
    """The floor of a whole decode: its forwards are serial."""
    return sum(cost.floor_s(rates) for cost in costs)


@dataclass(frozen=True)
class Floor:
    """What a whole decode of one batch can't do without."""

    num_forwards: int
    read_bytes: int
    flops: int
    seconds: float
    num_memory_bound: int

    @classmethod
    def of(cls, costs: list[ForwardCost], rates: Rates) -> Floor:
        """The sums over the forwards; memory-bound ones wait for the weights rather than for the products."""
        reading = [cost.read_bytes / rates.copy_bytes_per_s >= cost.flops / rates.matmul_flops_per_s for cost in costs]
        return cls(
            num_forwards=len(costs),
            read_bytes=sum(cost.read_bytes for cost in costs),
            flops=sum(cost.flops for cost in costs),
            seconds=floor_s(costs, rates),
            num_memory_bound=sum(reading),
        )
