"""The memory that training takes on each device, estimated before it starts.

Letters: B images of a micro-batch, P prefix tokens, N = H*W cells, D model dim, L backbone blocks, V codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from flashar_cli.config import BackboneConfig, BranchConfig, GridConfig, RasterConfig
from flashar_cli.config.recipe import NO_LORA, EngineSettings, LoraSettings, StageSettings
from flashar_cli.models.flashar import FlasharModel, HiddenStates
from flashar_cli.training.losses import part_sums, targets_at_once

T = TypeVar("T")
WEIGHT_BYTES = 4  # float32
ADAM_BYTES_PER_WEIGHT = 16  # float32: weight, gradient, two moments
# Where weights, gradients and moments take a larger share of a device, they are sharded.
MOST_UNSHARDED = 0.6
# Share of a device that a plan may fill. The rest is for fragmentation and for the libraries.
MOST_FILLED = 0.9
USUAL_RANK = 16  # of adapters that are only thought of
SMALL_CODEBOOKS = 256, 512
COUNTS_OF_DEVICES = (1, 2, 4, 8, 16, 32, 64)


def held_bytes(num_weights: int, dtype: torch.dtype, trained: bool) -> int:
    """Bytes of weights, and of gradients and moments where they are trained, in float32."""
    return num_weights * (ADAM_BYTES_PER_WEIGHT if trained else dtype.itemsize)


def needs_sharding(num_bytes: int, device_bytes: int) -> bool:
    """Whether whole copies of so many bytes would leave too little of a device for activations."""
    return num_bytes > MOST_UNSHARDED * device_bytes


def model_bytes(config: RasterConfig, lora: LoraSettings, frozen: torch.dtype) -> int:
    """``held_bytes`` of an adapted model: all trained, or with ``lora`` all but its base, which is ``frozen``."""
    base, added = _base_weights(config), lora.num_weights(config.backbone)
    new = config.num_weights - base + added
    return held_bytes(base, frozen, not lora.rank) + held_bytes(new, torch.float32, True)


def _base_weights(config: RasterConfig) -> int:
    return config.model_copy(update={"branch": None, "diffusion": None}).num_weights


def frozen_dtype(lora: LoraSettings, stored: torch.dtype, trained: torch.dtype) -> torch.dtype:
    """The dtype in memory of a backbone stored in one dtype and run in another: float32, which training needs, but as
    it is stored where only its adapters are trained and nothing is gained by a wider one.
    """
    return stored if lora.rank and stored == trained else torch.float32


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device in stage 2, which trains everything, or in place of the base adapters of ``lora_rank``.
    ``copies_bytes``: PyTorch's copies of weights, of low precision under autocast, or gathered under FSDP.
    ``loss_bytes``: heads and losses of the targets computed at once.
    """

    strategy: str
    processes: int
    lora_rank: int
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


@dataclass(frozen=True)
class Measured:
    """Bytes that one image stores for the backward pass, and that heads and losses need for one target."""

    activation_bytes: int
    target_bytes: int

    @classmethod
    def of(cls, config: RasterConfig, engine: EngineSettings, dtype: torch.dtype) -> Measured:
        return cls(activation_bytes(config, engine.activation_checkpointing, dtype), target_bytes(config, dtype))

    def loss_bytes(self, config: RasterConfig, num_images: int) -> int:
        """Bytes of heads and losses of the targets computed at once, with the gradients of logits and heads."""
        backbone = config.backbone
        rows = min(targets_at_once(backbone.vocab_size), num_images * config.order_grid.num_cells)
        return rows * self.target_bytes + WEIGHT_BYTES * (
            2 * (backbone.head_weights - backbone.dim) + config.gate_weights
        )


def estimate_memory(
    config: RasterConfig,
    engine: EngineSettings,
    batch_size: int,
    num_processes: int,
    device_bytes: int,
    dtype: torch.dtype,
    lora: LoraSettings = NO_LORA,
    stored_dtype: torch.dtype | None = None,
    measured: Measured | None = None,
) -> MemoryEstimate:
    """The estimate for an adapted model, and ``batch_size`` images a step over ``num_processes`` such devices.
    With ``lora`` the backbone is frozen, and its weights are stored in ``stored_dtype`` (None: ``dtype``). Adapters'
    activations are those of the layers they are added to, near enough. ``measured`` None: it is measured.
    """
    measured = measured or Measured.of(config, engine, dtype)
    own = _base_weights(config)
    frozen = frozen_dtype(lora, stored_dtype or dtype, dtype)
    size, block = config.num_weights + lora.num_weights(config.backbone), config.backbone.block_weights
    rest = config.num_weights - block * config.num_blocks
    held = model_bytes(config, lora, frozen)
    sharded = (num_processes > 1 and config.diffusion is None) and (
        engine.strategy == "fsdp" or (engine.strategy == "auto" and needs_sharding(held, device_bytes))
    )
    narrow = 0 if dtype == torch.float32 else dtype.itemsize
    if sharded:
        # While one block is computed, the next is gathered; a block's gradient is whole until it is reduced. With
        # adapters such gradients are those of the branch.
        rest_trained = rest if not lora.rank else config.num_weights - own - block * _branch_depth(config)
        copies = (narrow or WEIGHT_BYTES) * (2 * block + rest) + WEIGHT_BYTES * (block + rest_trained)
    else:
        copies = narrow * (size if frozen == torch.float32 else size - own)
    images = min(engine.micro_batch_size, -(-batch_size // num_processes))
    return MemoryEstimate(
        strategy="fsdp" if sharded else "ddp" if num_processes > 1 else "single",
        processes=num_processes,
        lora_rank=lora.rank,
        weights_and_optimizer_bytes=-(-held // (num_processes if sharded else 1)),
        copies_bytes=copies,
        loss_bytes=measured.loss_bytes(config, images),
        activation_bytes_per_image=measured.activation_bytes,
        images_per_forward=images,
    )


def ways_that_fit(
    config: RasterConfig,
    engine: EngineSettings,
    batch_size: int,
    device_bytes: int,
    dtype: torch.dtype,
    lora: LoraSettings,
    stored_dtype: torch.dtype | None,
    measured: Measured,
) -> list[tuple[MemoryEstimate, bool]]:
    """Estimates of other ways to train: everything, and adapters, each on one such device and on the fewest (a power of
    two) whose shards fit, or as many as are thought of; and whether that fits.
    """
    found = []
    sharding = EngineSettings(**{**engine.model_dump(), "strategy": "fsdp"})
    for settings in (NO_LORA, lora if lora.rank else LoraSettings(rank=USUAL_RANK)):
        for num_devices in COUNTS_OF_DEVICES:
            size = max(batch_size, num_devices)
            each = estimate_memory(
                config, sharding, size, num_devices, device_bytes, dtype, settings, stored_dtype, measured
            )
            fits = each.total_bytes <= MOST_FILLED * device_bytes
            if fits or num_devices in (1, COUNTS_OF_DEVICES[-1]):
                found.append((each, fits))
            if fits and num_devices > 1:
                break
    return found


def activation_bytes(config: RasterConfig, recompute: bool, dtype: torch.dtype) -> int:
    """Bytes that one image stores for the backward pass, and the gradients it starts from, without heads and losses.

    Measured on small models on a 4x4 grid, with one and two images. Everything is linear in blocks, widths, heads,
    tokens and images, as no attention kernel stores its scores.
    """
    prefix, depth = config.prefix.longest, _branch_depth(config)
    image = config.order_grid.num_cells - 1
    if config.diffusion is not None:  # a second image, less the last block of the first
        image += 1 + config.diffusion.num_context(config.order_grid.num_cells)
    tokens = prefix + image
    one, two = (_extrapolated_bytes_per_token(config, layers, dtype) for layers in (1, 2))
    block, rest = two - one, one - (two - one) * (1 + depth)
    sees_prefix = config.branch is None or config.branch.sees_prefix
    in_blocks = config.backbone.num_layers * tokens + depth * (tokens if sees_prefix else image)
    stored = block * in_blocks
    if recompute:  # the input of every block, and one block at a time in full
        stored = config.backbone.dim * dtype.itemsize * in_blocks + block * tokens
    return round(stored + rest * tokens)


def target_bytes(config: RasterConfig, dtype: torch.dtype) -> int:
    """Bytes of heads and losses of one target, with the gradients of its logits. Measured with one and two targets, and
    with two small codebooks, as everything is linear in V.
    """
    few, more = SMALL_CODEBOOKS
    at_few, at_more = (_loss_bytes_per_target(config, size, dtype) for size in SMALL_CODEBOOKS)
    return round(at_few + (at_more - at_few) / (more - few) * (config.backbone.vocab_size - few))


def _loss_bytes_per_target(config: RasterConfig, vocab_size: int, dtype: torch.dtype) -> int:
    shallow = _shallow(config, 1)
    backbone = BackboneConfig(**{**shallow.backbone.model_dump(), "vocab_size": vocab_size})
    model = _zeros(shallow.model_copy(update={"backbone": backbone, "tokenizer": None}))
    one, two = (_stored_by_loss(model, count, dtype) for count in (1, 2))
    return two - one + 2 * WEIGHT_BYTES * vocab_size  # the gradients of fused and of one head's logits


def _shallow(config: RasterConfig, num_layers: int) -> RasterConfig:
    """A model of so few layers, whose branch, if any, runs on all tokens, so that all of them store the same."""
    branch = config.branch
    return config.model_copy(
        update={
            "backbone": BackboneConfig(**{**config.backbone.model_dump(), "num_layers": num_layers}),
            "branch": branch and BranchConfig(**{**branch.model_dump(), "layer": num_layers, "sees_prefix": True}),
            "diffusion": None,
            "grid": GridConfig(height=4, width=4),
        }
    )


def _branch_depth(config: RasterConfig) -> int:
    return 0 if config.branch is None else config.branch.depth


def _zeros(config: RasterConfig) -> FlasharModel:
    with torch.device("meta"):
        model = FlasharModel(config)
    # NumPy's zeros take no memory before they are written to, and most rows of the tables are not even read.
    state = {name: torch.from_numpy(np.zeros(each.shape, np.float32)) for name, each in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.train()


def _extrapolated_bytes_per_token(config: RasterConfig, num_layers: int, dtype: torch.dtype) -> float:
    """``_stored_bytes_per_token`` of the sizes in ``config``, from small ones that are doubled one after the other."""
    wanted = config.backbone
    heads, kv_heads, both = ("num_heads",), ("num_kv_heads",), ("num_heads", "num_kv_heads")
    grouped = wanted.num_heads != wanted.num_kv_heads
    sizes = {"dim": 64, "ffn_dim": 64, "num_heads": 4, "num_kv_heads": 2 if grouped else 4}
    steps: tuple[tuple[str, ...], ...] = (("dim",), ("ffn_dim",), *((heads, kv_heads) if grouped else (both,)))
    total = now = _stored_bytes_per_token(config, sizes, num_layers, dtype)
    for names in steps:
        size, before = sizes[names[0]], now
        sizes = sizes | dict.fromkeys(names, 2 * size)
        now = _stored_bytes_per_token(config, sizes, num_layers, dtype)
        total += (now - before) / size * (getattr(wanted, names[0]) - size)
    return total


def _stored_bytes_per_token(config: RasterConfig, sizes: dict[str, int], num_layers: int, dtype: torch.dtype) -> float:
    """Bytes that a model of these sizes, and else as ``config``, stores for each token."""
    shallow = _shallow(config, num_layers)
    backbone = BackboneConfig(**{**shallow.backbone.model_dump(), **sizes})
    shallow = shallow.model_copy(update={"backbone": backbone})
    model = _zeros(shallow)
    one, two = (_stored_bytes(model, count, dtype) for count in (1, 2))
    length = model.prefix.length(model.prefix.example(1, seed=0))
    return (two - one) / (length + shallow.order_grid.num_cells - 1)


def _stored_bytes(model: FlasharModel, num_images: int, dtype: torch.dtype) -> int:
    """Bytes that a forward keeps for its backward, and its outputs with their gradients, without weights."""
    grid = model.config.order_grid
    order = grid.raster() if model.branch is None else grid.diagonal()
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
    tensors = (h_BCD, None if model.branch is None else v_BCD, tokens, counted, counted, None, None)
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
