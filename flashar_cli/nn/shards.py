"""Tensors in shards: a DTensor, which `fully_shard` makes of a parameter, has the shape of the whole and a part of its
values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Copies values of the whole shape, which every process has, into a parameter or this process's shard of it."""
    values = values.to(parameter.device)
    if isinstance(parameter, DTensor):
        # Without a source rank each process takes its part of its own values, and nothing is sent.
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(values)


def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor; of a sharded one every process must ask for them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The values that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The rows ``first`` .. ``last`` - 1 that this process has of a tensor, which is sharded along its rows or not."""
    num_rows = tensor.shape[0]
    if not isinstance(tensor, DTensor):
        return 0, num_rows
    (placement,) = tensor.placements
    assert placement.is_shard(0), "fully_shard cuts tensors along their rows"
    size = -(-num_rows // tensor.device_mesh.size())
    first = min(num_rows, tensor.device_mesh.get_local_rank() * size)
    return first, min(num_rows, first + size)
