"""Which rows a process has of a sharded tensor, against PyTorch's own chunks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from flashar_cli.nn.shards import fill, own, own_rows


@pytest.mark.parametrize("num_rows", (1, 3, 4, 5, 8, 9))
@pytest.mark.parametrize(("rank", "size"), ((0, 2), (1, 2), (0, 4), (2, 4), (3, 4)))
def test_rows_are_those_of_chunks(num_rows, rank, size):
    table = torch.arange(3.0 * num_rows).view(num_rows, 3)
    assert own_rows(table) == (0, num_rows)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        mesh = init_device_mesh("cpu", (size,))
        sharded = distribute_tensor(torch.zeros(num_rows, 3), mesh, [Shard(0)], src_data_rank=None)
        first, last = own_rows(sharded)
        fill(sharded, table)
        assert torch.equal(own(sharded), table[first:last])
        chunks = table.chunk(size)
        assert torch.equal(own(sharded), chunks[rank] if rank < len(chunks) else table[:0])
    finally:
        dist.destroy_process_group()
