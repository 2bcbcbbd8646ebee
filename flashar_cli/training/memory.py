"""How much memory training takes on each device, before it starts.

Letters: B pictures of a micro-batch, P prefix tokens, N = H*W cells, D model dim, L backbone blocks, V codebook size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from flashar_cli.config import BackboneConfig, BranchConfig, CaptionPrefix, GridConfig, ModelConfig
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.recipe import EngineSettings, StageSettings
from flashar_cli.training.losses import adaptation_loss

WEIGHT_BYTES = 4  # float32
ADAM_BYTES_PER_WEIGHT = 16  # float32: weight, gradient, two moments
# Share of a device that weights, gradients and moments may take before they are sharded.
MOST_UNSHARDED = 0.6
# Share of a device that a plan may fill: the rest is for what the allocator can't use and the libraries keep.
MOST_FILLED = 0.9


def training_bytes(num_trained: int, num_parameters: int) -> int:
    """Weights, and gradients and moments of those that are trained."""
    return ADAM_BYTES_PER_WEIGHT * num_trained + WEIGHT_BYTES * (num_parameters - num_trained)


def needs_sharding(num_parameters: int, device_bytes: int) -> bool:
    """Whether whole copies would leave too little of a device for activations."""
    return training_bytes(num_parameters, num_parameters) > MOST_UNSHARDED * device_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device in stage 2, which trains everything. ``copies`` are what PyTorch keeps of weights beside
    them: low-precision copies under autocast, gathered shards under FSDP.
    """

    strategy: str
    weights_and_optimizer_bytes: int
    copies_bytes: int
    activation_bytes_per_image: int
    images_per_forward: int

    @property
    def total_bytes(self) -> int:
        """All of it, at ``images_per_forward``."""
        fixed = self.weights_and_optimizer_bytes + self.copies_bytes
        return fixed + self.images_per_forward * self.activation_bytes_per_image

    def largest_micro_batch(self, device_bytes: int) -> int:
        """Pictures a forward that a device of this size has room for; 0 where not even one."""
        fixed = self.weights_and_optimizer_bytes + self.copies_bytes
        return max(0, int((MOST_FILLED * device_bytes - fixed) // self.activation_bytes_per_image))

    def document(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"total_bytes": self.total_bytes, "total_gib": round(self.total_bytes / 2**30, 2)}


def estimate_memory(
    config: ModelConfig,
    engine: EngineSettings,
    batch_size: int,
    num_processes: int,
    device_bytes: int,
    dtype: torch.dtype,
) -> MemoryEstimate:
    """For a model with its branch, and ``batch_size`` pictures a step over ``num_processes`` devices of this size."""
    with torch.device("meta"):
        model = FlasharModel(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in model.backbone.blocks[0].parameters())
    assert model.branch is not None, "adaptation trains a branch"
    rest = size - block * (len(model.backbone.blocks) + len(model.branch.blocks))
    sharded = num_processes > 1 and (
        engine.strategy == "fsdp" or (engine.strategy == "auto" and needs_sharding(size, device_bytes))
    )
    narrow = 0 if dtype == torch.float32 else dtype.itemsize
    if sharded:
        # One block is used while the next is gathered; its gradient is whole until it is reduced.
        copies = (narrow or WEIGHT_BYTES) * (2 * block + rest) + WEIGHT_BYTES * (block + rest)
    else:
        copies = narrow * size
    return MemoryEstimate(
        strategy="fsdp" if sharded else "ddp" if num_processes > 1 else "single",
        weights_and_optimizer_bytes=-(-training_bytes(size, size) // (num_processes if sharded else 1)),
        copies_bytes=copies,
        activation_bytes_per_image=activation_bytes(config, engine.activation_checkpointing, dtype),
        images_per_forward=min(engine.micro_batch_size, -(-batch_size // num_processes)),
    )


def activation_bytes(config: ModelConfig, recompute: bool, dtype: torch.dtype) -> int:
    """What the backward pass of one picture finds stored, and its largest gradients.

    Measured, not modelled: on models of one and two blocks of this width, a 4x4 grid, one and two pictures. Everything
    is linear in blocks, tokens and pictures, as no attention kernel stores its scores.
    """
    branch = config.branch
    assert branch is not None
    num_blocks = config.backbone.num_layers + branch.depth
    tokens = config.prefix.length + config.order_grid.num_cells - 1
    one, two = (_stored_bytes_per_token(config, layers, dtype) for layers in (1, 2))
    block, rest = two - one, one - (two - one) * (1 + branch.depth)
    stored = block * num_blocks
    if recompute:  # the input of every block, and one block at a time in full
        stored = config.backbone.dim * WEIGHT_BYTES * num_blocks + block
    logits = 2 * WEIGHT_BYTES * config.backbone.vocab_size  # gradients of fused and of one head's logits
    return round(tokens * (stored + rest + logits))


def _stored_bytes_per_token(config: ModelConfig, num_layers: int, dtype: torch.dtype) -> float:
    branch = config.branch
    assert branch is not None
    shallow = config.model_copy(
        update={
            "backbone": BackboneConfig(**{**config.backbone.model_dump(), "num_layers": num_layers}),
            "branch": BranchConfig(**{**branch.model_dump(), "layer": num_layers}),
            "grid": GridConfig(height=4, width=4),
        }
    )
    with torch.device("meta"):
        model = FlasharModel(shallow)
    model = model.to_empty(device="cpu").train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    one, two = (_stored_bytes(model, count, dtype) for count in (1, 2))
    return (two - one) / (config.prefix.length + shallow.order_grid.num_cells - 1)


def _stored_bytes(model: FlasharModel, num_images: int, dtype: torch.dtype) -> int:
    """Bytes of the distinct tensors that autograd keeps for one forward with its loss, weights apart."""
    weights = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> None:
        # Given back to autograd, an operation's own output would hold the operation, and neither would be freed.
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.detach()

    order = model.config.order_grid.diagonal()
    codes = torch.zeros(num_images, order.grid.num_cells, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        prediction = model(codes, _example(model, num_images), order)
        adaptation_loss(prediction, codes, StageSettings(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _example(model: FlasharModel, num_images: int) -> Conditions:
    prefix = model.config.prefix
    if isinstance(prefix, CaptionPrefix):
        features = torch.zeros(num_images, prefix.length, prefix.feature_dim)
        return Conditions(features=features, mask=torch.ones(num_images, prefix.length))
    return Conditions(labels=torch.zeros(num_images, dtype=torch.int64))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
