"""Writes safetensors files without having all tensors in memory at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

ONE_FILE = 2**62


class Later(NamedTuple):
    """A tensor that is made when it is needed. ``make`` may be a collective: then every process calls it."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Later:
        """A tensor that is there already."""
        return cls(tensor.shape, tensor.dtype, lambda: tensor)


def save_tensors(
    tensors: Mapping[str, Later], directory: Path | None, name: str, max_shard_size: int | str = ONE_FILE
) -> None:
    """Writes ``name``, or shards of it and their index where all are larger than ``max_shard_size`` (in bytes, or as
    ``"5GB"``). One file at a time is in memory. Without a directory tensors are made in the same order and dropped, as
    another process writes them.

    Raises OSError for a full disk.
    """
    layout = {key: torch.empty(each.shape, dtype=each.dtype, device="meta") for key, each in tensors.items()}
    pattern = name.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(layout, filename_pattern=pattern, max_shard_size=max_shard_size)
    for file, keys in split.filename_to_tensors.items():
        found = {}
        for key in keys:
            tensor = tensors[key].make()
            if directory is not None:
                # Cloned: safetensors refuses tensors that share memory, as tied weights do.
                found[key] = tensor.detach().to(tensors[key].dtype).cpu().clone(memory_format=torch.contiguous_format)
        if directory is not None:
            try:
                save_file(found, directory / file, metadata={"format": "pt"})
            except SafetensorError as error:  # what a full disk looks like from here
                raise OSError(str(error)) from error
    if directory is not None and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / f"{name}.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
