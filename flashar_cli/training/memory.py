"""The memory that training takes on each device, estimated before it starts.

Letters: B images of a micro-batch, P prefix tokens, N = H*W cells, D model dim, L backbone blocks, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from flashar_cli.config import BackboneConfig, BranchConfig, GridConfig, ModelConfig
from flashar_cli.config.recipe import EngineSettings, StageSettings
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.training.losses import TARGETS_AT_ONCE, part_sums

T = TypeVar("T")
WEIGHT_BYTES = 4  # float32
ADAM_BYTES_PER_WEIGHT = 16  # float32: weight, gradient, two moments
# Where weights, gradients and moments take a larger share of a device, they are sharded.
MOST_UNSHARDED = 0.6
# Share of a device that a plan may fill. The rest is for fragmentation and for the libraries.
MOST_FILLED = 0.9


def training_bytes(num_trained: int, num_parameters: int) -> int:
    """Bytes of all weights, and of gradients and moments of the trained ones."""
    return ADAM_BYTES_PER_WEIGHT * num_trained + WEIGHT_BYTES * (num_parameters - num_trained)


def needs_sharding(num_parameters: int, device_bytes: int) -> bool:
    """Whether whole copies would leave too little of a device for activations."""
    return training_bytes(num_parameters, num_parameters) > MOST_UNSHARDED * device_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device in stage 2, which trains everything. ``copies_bytes``: PyTorch's copies of weights, of low
    precision under autocast, or gathered under FSDP. ``loss_bytes``: heads and losses of the targets computed at once.
    """

    strategy: str
    weights_and_optimizer_bytes: int
    copies_bytes: int
    loss_bytes: int
    activation_bytes_per_image: int
    images_per_forward: int

    @property
    def total_bytes(self) -> int:
        """Everything, for ``images_per_forward``."""
        return self._fixed_bytes + self.images_per_forward * self.activation_bytes_per_image

    @property
    def _fixed_bytes(self) -> int:
        return self.weights_and_optimizer_bytes + self.copies_bytes + self.loss_bytes

    def largest_micro_batch(self, device_bytes: int) -> int:
        """The most images a forward on a device of this size; 0 where one has no room."""
        return max(0, int((MOST_FILLED * device_bytes - self._fixed_bytes) // self.activation_bytes_per_image))

    def document(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self) | {"total_bytes": self.total_bytes, "total_gib": round(self.total_bytes / 2**30, 2)}


def estimate_memory(
    config: ModelConfig,
    engine: EngineSettings,
    batch_size: int,
    num_processes: int,
    device_bytes: int,
    dtype: torch.dtype,
) -> MemoryEstimate:
    """The estimate for a model with a branch, and ``batch_size`` images a step over ``num_processes`` such devices."""
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
        # While one block is computed, the next is gathered; a block's gradient is whole until it is reduced.
        copies = (narrow or WEIGHT_BYTES) * (2 * block + rest) + WEIGHT_BYTES * (block + rest)
    else:
        copies = narrow * size
    images = min(engine.micro_batch_size, -(-batch_size // num_processes))
    return MemoryEstimate(
        strategy="fsdp" if sharded else "ddp" if num_processes > 1 else "single",
        weights_and_optimizer_bytes=-(-training_bytes(size, size) // (num_processes if sharded else 1)),
        copies_bytes=copies,
        loss_bytes=loss_bytes(config, images, dtype),
        activation_bytes_per_image=activation_bytes(config, engine.activation_checkpointing, dtype),
        images_per_forward=images,
    )


def activation_bytes(config: ModelConfig, recompute: bool, dtype: torch.dtype) -> int:
    """Bytes that one image stores for the backward pass, and the gradients it starts from, without heads and losses.

    Measured on models of one and two blocks of this width, on a 4x4 grid, with one and two images. Everything is linear
    in blocks, tokens and images, as no attention kernel stores its scores.
    """
    branch = config.branch
    assert branch is not None
    tokens = config.prefix.longest + config.order_grid.num_cells - 1
    one, two = (_stored_bytes_per_token(config, layers, dtype) for layers in (1, 2))
    block, rest = two - one, one - (two - one) * (1 + branch.depth)
    stored = block * config.num_blocks
    if recompute:  # the input of every block, and one block at a time in full
        stored = config.backbone.dim * dtype.itemsize * config.num_blocks + block
    return round(tokens * (stored + rest))


def loss_bytes(config: ModelConfig, num_images: int, dtype: torch.dtype) -> int:
    """Bytes of heads and losses of the targets computed at once, with the gradients of logits and heads. Measured with
    one and two targets.
    """
    model = _zeros(_shallow(config, 1))
    assert model.branch is not None
    one, two = (_stored_by_loss(model, count, dtype) for count in (1, 2))
    rows = min(TARGETS_AT_ONCE, num_images * config.order_grid.num_cells)
    gradients = 2 * WEIGHT_BYTES * config.backbone.vocab_size  # of fused and of one head's logits
    modules = (model.backbone.head, model.branch.head, model.branch.gate)
    weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return rows * (two - one + gradients) + WEIGHT_BYTES * weights


def _shallow(config: ModelConfig, num_layers: int) -> ModelConfig:
    branch = config.branch
    assert branch is not None
    return config.model_copy(
        update={
            "backbone": BackboneConfig(**{**config.backbone.model_dump(), "num_layers": num_layers}),
            "branch": BranchConfig(**{**branch.model_dump(), "layer": num_layers}),
            "grid": GridConfig(height=4, width=4),
        }
    )


def _zeros(config: ModelConfig) -> FlasharModel:
    with torch.device("meta"):
        model = FlasharModel(config)
    model = model.to_empty(device="cpu").train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def _stored_bytes_per_token(config: ModelConfig, num_layers: int, dtype: torch.dtype) -> float:
    shallow = _shallow(config, num_layers)
    model = _zeros(shallow)
    one, two = (_stored_bytes(model, count, dtype) for count in (1, 2))
    length = model.prefix.length(model.prefix.example(1, seed=0))
    return (two - one) / (length + shallow.order_grid.num_cells - 1)


def _stored_bytes(model: FlasharModel, num_images: int, dtype: torch.dtype) -> int:
    """Bytes that a forward keeps for its backward, and its outputs with their gradients, without weights."""
    order = model.config.order_grid.diagonal()
    tokens = torch.zeros(num_images, order.grid.num_cells, dtype=torch.int64)

    def forward() -> HiddenStates:
        conditions = model.prefix.example(num_images, seed=0)
        sources: HiddenStates = model(tokens, conditions, order, read=lambda hidden, targets: hidden.sources(targets))
        return sources

    kept, sources = _kept(model, forward, dtype)
    return kept + 2 * sum(part.nbytes for part in sources if part is not None)


def _stored_by_loss(model: FlasharModel, num_targets: int, dtype: torch.dtype) -> int:
    """Bytes that heads and losses of some targets keep for the backward, without weights."""
    h_BCD, v_BCD = (torch.zeros(1, num_targets, model.config.backbone.dim, dtype=dtype) for _ in range(2))
    h_BCD.requires_grad_(), v_BCD.requires_grad_()
    tokens, counted = torch.zeros(1, num_targets, dtype=torch.int64), torch.ones(1, num_targets, dtype=torch.bool)
    tensors = (h_BCD, v_BCD, tokens, counted, counted, None, None)
    return _kept(model, lambda: part_sums(model, StageSettings(), *tensors), dtype)[0]


def _kept(model: FlasharModel, compute: Callable[[], T], dtype: torch.dtype) -> tuple[int, T]:
    """Bytes of the distinct tensors that autograd keeps of a computation, without weights, and its result."""
    weights = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> None:
        # Detached, as an operation's own output would refer to the operation, and neither would be freed.
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.detach()

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        result = compute()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
