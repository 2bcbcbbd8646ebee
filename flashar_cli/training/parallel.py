"""One model trained by several processes: PyTorch's DDP or FSDP2. In a single process all of this does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from flashar_cli.config.recipe import EngineSettings
from flashar_cli.machine.world import World, current_world
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.layers import Block
from flashar_cli.training.memory import held_bytes, needs_sharding


class Parallel:
    """A model that the processes of a run train together: one that is sharded already, or that all of them hold whole.
    ``world`` says which of them this one is.
    """

    def __init__(self, model: FlasharModel, engine: EngineSettings, dtype: torch.dtype) -> None:
        self.world = current_world() if dist.is_initialized() else World()
        self.model = model
        self._forward: nn.Module = model
        if self.world.size > 1 and not isinstance(model, FSDPModule):
            held = sum(held_bytes(each.numel(), each.dtype, each.requires_grad) for each in model.parameters())
            if chooses_sharding(engine, held, model.device):
                shard(model, dtype)
        self.sharded = isinstance(model, FSDPModule)

    def start_stage(self) -> None:
        """Call this once ``requires_grad`` is set for the stage: DDP reads it only when it is created."""
        if self.world.size > 1 and not self.sharded:
            device_ids = [self.model.device.index] if self.model.device.type == "cuda" else None
            self._forward = DistributedDataParallel(self.model, device_ids=device_ids, gradient_as_bucket_view=True)

    def __call__(self, *arguments: Any) -> Any:
        """The model's forward; its backward averages gradients over processes."""
        return self._forward(*arguments)

    def accumulating(self) -> AbstractContextManager[None]:
        """For all micro-batches of a step but the last: their gradients are not averaged over processes yet."""
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        if self.sharded:
            return self._without_reduction()
        return nullcontext()

    @contextmanager
    def _without_reduction(self) -> Iterator[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)


@contextmanager
def callable_parts(model: FlasharModel) -> Iterator[None]:
    """Within the context the parts of a sharded model can be called by themselves, as decoding does, by all processes
    together: a block gathers itself, and what is in no block is whole.

    Every part has had a forward outside inference mode before, unless no training follows: the first one makes the
    tensors that weights are gathered into.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def chooses_sharding(engine: EngineSettings, num_bytes: int, device: torch.device) -> bool:
    """Whether several processes shard a model that takes so many bytes with its gradients and optimizer."""
    if engine.strategy != "auto" or device.type != "cuda":
        return engine.strategy == "fsdp"
    return needs_sharding(num_bytes, torch.cuda.mem_get_info(device)[1])


def shard(model: FlasharModel, dtype: torch.dtype, device_type: str | None = None) -> None:
    """Each block by itself, then the rest. Gradients are reduced in float32. A model without data needs to be told the
    type of its device.
    """
    mesh = init_device_mesh(device_type or model.device.type, (dist.get_world_size(),))
    # Inputs are not cast: rotation tables must be float32, and autocast computes products in ``dtype`` anyway.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The root is resharded too, so that after a validation the weights are those that the optimizer refers to.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
