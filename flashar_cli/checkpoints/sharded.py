"""Reads and writes checkpoints of models that no process holds whole: each has a shard of every tensor."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException

from flashar_cli.checkpoints.parts import open_checkpoint
from flashar_cli.config import ModelConfig, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.files.lazy import Made
from flashar_cli.files.shards import DTYPES, weight_files
from flashar_cli.files.tensors import WEIGHT_DTYPES, describe_problems, open_safetensors
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import Adapter, adapters, is_adapter, plain_name
from flashar_cli.nn.shards import own, own_rows, whole

STORED = [name for name, dtype in DTYPES.items() if dtype in WEIGHT_DTYPES]


@torch.no_grad()
def read_base(model: FlasharModel, directory: Path) -> None:
    """Fills prefix and backbone from the checkpoint of a base. Every process calls this and reads the rows that it has;
    nothing is sent. Raises FlasharError as ``checkpoint.load``.
    """
    wanted = {
        plain_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not is_adapter(name) and not name.startswith("branch.")
    }
    if (config := read_config(directory)).weights == "upstream":
        _read_linked(wanted, directory, config)
    else:
        _read_own(wanted, directory)
    infinite = torch.tensor([float(not own(tensor).isfinite().all()) for tensor in wanted.values()])
    if dist.is_initialized():
        dist.all_reduce(infinite)
    problems = [
        f"{name} has NaN or infinite values" for name, bad in zip(wanted, infinite.tolist(), strict=True) if bad
    ]
    if problems:
        raise FlasharError(f"{directory} does not match its config.json: {describe_problems(problems)}")


def _read_own(wanted: dict[str, Tensor], directory: Path) -> None:
    """Fills tensors from files that have them by these names."""
    problems = _layout_problems(wanted, directory)
    if problems:
        raise FlasharError(f"{directory} does not match its config.json: {describe_problems(problems)}")
    reader = HuggingFaceStorageReader(str(directory))
    try:
        dcp.load(wanted, storage_reader=reader, no_dist=not dist.is_initialized())
    except (CheckpointException, OSError, RuntimeError, ValueError, KeyError) as error:
        raise FlasharError(f"{directory} cannot be read ({type(error).__name__}); copy it again") from None


def _read_linked(wanted: dict[str, Tensor], directory: Path, config: ModelConfig) -> None:
    """Fills tensors from upstream's files, in which they may be in pieces, or pieces of others."""
    state, _ = open_checkpoint(directory, config)
    for name, tensor in wanted.items():
        first, last = own_rows(tensor)
        own(tensor).copy_(state[name].read(first, last))


def weights_of(model: FlasharModel, dtype: torch.dtype, merge: bool = True) -> dict[str, Made]:
    """The tensors of a checkpoint of this model, in ``dtype``. Adapters are merged into them, or left out. Where the
    model is sharded every process must make each tensor, in one order.
    """
    found = adapters(model) if merge else {}

    def later(name: str, tensor: Tensor) -> Made:
        adapter = found.get(name.removesuffix(".base_layer.weight"))
        return Made(tensor.shape, dtype, lambda: _merged(tensor, adapter))

    return {plain_name(name): later(name, each) for name, each in model.state_dict().items() if not is_adapter(name)}


def _merged(tensor: Tensor, adapter: Adapter | None) -> Tensor:
    if adapter is None:
        return whole(tensor)
    return Adapter(whole(adapter.a_RI), whole(adapter.b_OR), adapter.scale).added_to(whole(tensor).float())


def _layout_problems(wanted: dict[str, Tensor], directory: Path) -> list[str]:
    """What the heads of the files say against these names and shapes."""
    problems, found = [], set()
    files = weight_files(directory)
    for path in [*files, *sorted(set(directory.glob("*.safetensors")) - set(files))]:
        with open_safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if path not in files:  # torch reads every file of the directory
                    problems += [f"{path.name} holds {name} too; remove that file"] if name in wanted else []
                    continue
                found.add(name)
                part = file.get_slice(name)
                if name not in wanted:
                    problems.append(f"unexpected {name}")
                elif part.get_shape() != list(wanted[name].shape):
                    problems.append(f"{name} is {part.get_shape()}, expected {list(wanted[name].shape)}")
                elif part.get_dtype() not in STORED:
                    problems.append(f"{name} is {part.get_dtype()}, expected one of {', '.join(STORED)}")
    return sorted(problems + [f"missing {name}" for name in wanted if name not in found])
