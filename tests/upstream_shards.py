"""Synthetic upstream checkpoints of any size, in safetensors files with an index."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

# Values that are repeated to fill a tensor: fast for gigabytes, and a prime number, so that rows differ.
_PERIOD = 1_000_003


def values_of(name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The values of a synthetic tensor, normal with deviation 0.02: the same for a name, a shape and a dtype."""
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    some = (0.02 * torch.randn(min(count, _PERIOD), generator=generator)).to(dtype)
    return some.repeat(-(-count // len(some)))[:count].reshape(*shape)


def write_shards(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    num_shards: int,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.bfloat16,
    config: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Writes tensors of these names and shapes, in this order, into files of about the same size. ``config`` becomes
    ``config.json``. Returns the file of each tensor. In memory there is one file at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {name: dtype if isinstance(dtype, torch.dtype) else dtype[name] for name in shapes}
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in shapes.items()}
    whole, before = sum(sizes.values()), 0
    files: dict[str, str] = {}
    for name, size in sizes.items():
        files[name] = f"model-{before * num_shards // whole + 1:05d}-of-{num_shards:05d}.safetensors"
        before += size
    for file in sorted(set(files.values())):
        state = {name: values_of(name, shapes[name], dtypes[name]) for name in shapes if files[name] == file}
        save_file(state, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": whole}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return files
