"""The least time a decoder can take: every forward reads the weights once and multiplies them with its rows.

Letters: B images, R rows (B, or 2B with guidance), C cells of a step, D model dim, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashar_cli.config import RasterConfig
from flashar_cli.grid import Grid, Order
from flashar_cli.machine.rates import Rates

# Of a linear layer --quantize keeps a byte for each weight and, for each output, a float32 scale.
QUANTIZED_BYTES, SCALE_BYTES = 1, 4


@dataclass(frozen=True)
class ForwardCost:
    """Weight bytes one forward reads, and its multiplications and additions with weights."""

    read_bytes: int
    flops: int

    def floor_s(self, rates: Rates) -> float:
        """Reading and computing overlap at best, so the slower of the two counts."""
        return max(self.read_bytes / rates.copy_bytes_per_s, self.flops / rates.matmul_flops_per_s)


@dataclass(frozen=True)
class Workload:
    """One batch: ``rows`` sequences (B, or 2B with guidance) of ``prefix_length`` positions and a grid. A weight takes
    ``weight_bytes``; with ``quantized`` one of a linear layer in blocks and heads takes 8 bits, and each output of such
    a layer a scale.
    """

    grid: Grid
    rows: int
    prefix_length: int
    weight_bytes: int
    quantized: bool = False


def forward_costs(config: RasterConfig, order: Order, work: Workload) -> list[ForwardCost]:
    """One cost per step of ``order``.

    Blocks, heads and, where the order needs it, the branch with its head and gate are counted; embedding tables are
    not, as a step reads only a few of their rows. The blocks run on the cells of the step before (step 0: on the
    prefix), the heads on the cells of the step itself.
    """
    backbone = config.backbone
    with_branch = order.uses_branch
    if with_branch:
        assert config.branch is not None, "the order needs a vertical branch"
    num_heads = 2 if with_branch else 1
    heads = backbone.head_weights * num_heads + (config.gate_weights if with_branch else 0)
    costs = []
    for step in range(order.num_steps):
        embedding = backbone.embedding_mlp_weights if step > 0 else config.prefix.read_weights(backbone.dim)
        inputs = order.slot_starts[step] - order.slot_starts[step - 1] if step > 0 else work.prefix_length
        in_branch = with_branch and (step > 0 or config.branch is None or config.branch.sees_prefix)
        num_blocks = config.num_blocks if in_branch else backbone.num_layers
        blocks = num_blocks * backbone.block_weights
        products = (blocks + embedding) * inputs + heads * len(order.steps[step])
        read_bytes = (blocks + heads + embedding) * work.weight_bytes
        if work.quantized:
            weights = num_blocks * backbone.block_linear_weights + num_heads * backbone.head_linear_weights
            outputs = num_blocks * backbone.block_linear_outputs + num_heads * backbone.head_linear_outputs
            read_bytes -= weights * (work.weight_bytes - QUANTIZED_BYTES) - outputs * SCALE_BYTES
        costs.append(ForwardCost(read_bytes, 2 * products * work.rows))
    return costs


@dataclass(frozen=True)
class Floor:
    """The least that a whole decode of one batch takes: its forwards run one after the other."""

    num_forwards: int
    read_bytes: int
    flops: int
    seconds: float
    num_memory_bound: int

    @classmethod
    def of(cls, costs: list[ForwardCost], rates: Rates) -> Floor:
        """The sums over the forwards; a memory-bound one waits for the weights, not for the products."""
        reading = [cost.read_bytes / rates.copy_bytes_per_s >= cost.flops / rates.matmul_flops_per_s for cost in costs]
        return cls(
            num_forwards=len(costs),
            read_bytes=sum(cost.read_bytes for cost in costs),
            flops=sum(cost.flops for cost in costs),
            seconds=sum(cost.floor_s(rates) for cost in costs),
            num_memory_bound=sum(reading),
        )
