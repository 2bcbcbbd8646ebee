"""How many weights each part of a model has, from its config alone: what costs in time and memory are counted in."""

from __future__ import annotations

from flashar_cli.config import BackboneConfig, BranchConfig, CaptionPrefix, ModelConfig
from flashar_cli.grid import Grid

FLOAT_BYTES = 4
NUM_PICTURES = 4  # a convolution's input, its output, and what its algorithm needs


def block_weights(backbone: BackboneConfig) -> int:
    """Weights of one transformer block."""
    attention = backbone.dim * (backbone.num_heads + 2 * backbone.num_kv_heads) * backbone.head_dim + backbone.dim**2
    return attention + 3 * backbone.dim * backbone.ffn_dim + 2 * backbone.dim


def head_weights(backbone: BackboneConfig) -> int:
    """Weights of one output head with its norm."""
    return backbone.dim * backbone.vocab_size + backbone.dim


def linear_sizes(backbone: BackboneConfig, num_blocks: int, num_heads: int) -> tuple[int, int]:
    """Weights and outputs of the linear layers of that many blocks and output heads: what is neither norm nor gate."""
    dim = backbone.dim
    outputs = (backbone.num_heads + 2 * backbone.num_kv_heads) * backbone.head_dim + 2 * dim + 2 * backbone.ffn_dim
    weights = num_blocks * (block_weights(backbone) - 2 * dim) + num_heads * (head_weights(backbone) - dim)
    return weights, num_blocks * outputs + num_heads * backbone.vocab_size


def gate_weights(branch: BranchConfig, backbone: BackboneConfig) -> int:
    """Weights of the fusion gate."""
    if branch.gate_dim is None:
        return 1 if branch.gate == "scalar" else 0
    inputs = 2 * (backbone.dim if branch.gate == "hidden" else backbone.vocab_size)
    return (inputs + 1) * branch.gate_dim + 1


def model_weights(config: ModelConfig) -> int:
    """Weights of prefix, backbone and branch: all that a checkpoint stores but the tokenizer's."""
    backbone, prefix, branch = config.backbone, config.prefix, config.branch
    block, head = block_weights(backbone), head_weights(backbone)
    count = backbone.vocab_size * backbone.dim + backbone.num_layers * block + head
    if isinstance(prefix, CaptionPrefix):
        count += prefix_weights(config) + prefix.length * prefix.feature_dim
    else:
        count += (prefix.num_classes + 1) * backbone.dim
    return count if branch is None else count + branch.depth * block + head + gate_weights(branch, backbone)


def picture_bytes(config: ModelConfig, grid: Grid) -> int:
    """What the image tokenizer holds at once for one picture, in float32; 0 without a tokenizer."""
    if config.tokenizer is None:
        return 0
    pixels = grid.num_cells * config.tokenizer.downsample**2
    return NUM_PICTURES * pixels * config.tokenizer.channels * FLOAT_BYTES


def prefix_weights(config: ModelConfig) -> int:
    """Weights that only the prefix reads: the projection of caption features."""
    if not isinstance(config.prefix, CaptionPrefix):
        return 0
    return (config.prefix.feature_dim + config.backbone.dim) * config.backbone.dim
