"""The least time a decoder can take: every forward reads the weights once and multiplies them with its rows.

Letters: B images, R rows (B, or 2B with guidance), C cells of a step, D model dim, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

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
    with_branch = order.uses_branch
    inputs = [last - first for first, last in pairwise(order.slot_starts)]
    fed = zip(inputs[:-1], order.steps[1:], strict=True)
    return [
        prefix_cost(config, work, len(order.steps[0]), with_branch),
        *(forward_cost(config, work, num_inputs, len(cells), with_branch) for num_inputs, cells in fed),
    ]


def prefix_cost(config: RasterConfig, work: Workload, num_targets: int = 1, with_branch: bool = False) -> ForwardCost:
    """Of the forward that reads the prefix and predicts so many cells."""
    sees_prefix = config.branch is None or config.branch.sees_prefix
    embedding = config.prefix.read_weights(config.backbone.dim)
    return _cost(config, work, work.prefix_length, num_targets, embedding, with_branch, sees_prefix)


def forward_cost(
    config: RasterConfig, work: Workload, num_inputs: int, num_targets: int, with_branch: bool = False
) -> ForwardCost:
    """Of a forward that is fed so many tokens of each image and predicts so many cells."""
    return _cost(config, work, num_inputs, num_targets, config.backbone.embedding_mlp_weights, with_branch, with_branch)


def _cost(
    config: RasterConfig,
    work: Workload,
    num_inputs: int,
    num_targets: int,
    embedding: int,
    branch_head: bool,
    branch_blocks: bool,
) -> ForwardCost:
    backbone = config.backbone
    if branch_head:
        assert config.branch is not None, "the order needs a vertical branch"
    num_heads = 2 if branch_head else 1
    heads = backbone.head_weights * num_heads + (config.gate_weights if branch_head else 0)
    num_blocks = config.num_blocks if branch_head and branch_blocks else backbone.num_layers
    blocks = num_blocks * backbone.block_weights
    products = (blocks + embedding) * num_inputs + heads * num_targets
    read_bytes = (blocks + heads + embedding) * work.weight_bytes
    if work.quantized:
        weights = num_blocks * backbone.block_linear_weights + num_heads * backbone.head_linear_weights
        outputs = num_blocks * backbone.block_linear_outputs + num_heads * backbone.head_linear_outputs
        read_bytes -= weights * (work.weight_bytes - QUANTIZED_BYTES) - outputs * SCALE_BYTES
    return ForwardCost(read_bytes, 2 * products * work.rows)


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
