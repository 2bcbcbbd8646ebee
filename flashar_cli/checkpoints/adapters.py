"""Low-rank adapters beside a checkpoint's weights, in the format of the `peft` library: ``adapter/``.

Letters: R rank, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flashar_cli.config import validated
from flashar_cli.config.recipe import LoraSettings
from flashar_cli.errors import FlasharError
from flashar_cli.files.lazy import Made
from flashar_cli.files.shards import write_weights
from flashar_cli.files.tensors import WEIGHT_DTYPES, describe_problems, read_safetensors
from flashar_cli.inputs import bounds
from flashar_cli.inputs.reading import read_json
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.lora import Adapter, adapters, peft_config
from flashar_cli.nn.shards import whole

FOLDER = "adapter"
ONE_FILE = "1000TB"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FILES = (f"{FOLDER}/{CONFIG_FILE}", f"{FOLDER}/{WEIGHTS_FILE}")
# peft's name of the model that it wraps, which here is the backbone.
_THEIRS, _OURS = "base_model.model.", "backbone."


class AdapterConfig(BaseModel):
    """What is read of ``adapter_config.json``: plain adapters of one rank. Other kinds are refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    peft_type: Literal["LORA"]
    r: Annotated[int, bounds.RANK, Field(ge=1)]
    lora_alpha: Annotated[float, bounds.SCALE]
    target_modules: list[str]
    bias: Literal["none"] = "none"
    fan_in_fan_out: Literal[False] = False
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False
    lora_bias: Literal[False] = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}


def write(lora: LoraSettings, base_name: str, model: FlasharModel, directory: Path | None) -> None:
    """Writes the adapters of a model into ``directory / "adapter"`` as peft would. Processes that share a sharded model
    call this together; those without a directory write nothing.
    """
    tensors = {}
    for layer, adapter in adapters(model).items():
        for letter, tensor in (("A", adapter.a_RI), ("B", adapter.b_OR)):
            name = f"{_THEIRS}{layer.removeprefix(_OURS)}.lora_{letter}.weight"
            tensors[name] = Made(tensor.shape, torch.float32, partial(whole, tensor))
    folder = None if directory is None else directory / FOLDER
    if folder is not None:
        folder.mkdir(exist_ok=True)
        document: dict[str, Any] = peft_config(lora).to_dict()
        own = {"target_modules": sorted(lora.targets), "base_model_name_or_path": base_name, "inference_mode": True}
        text = json.dumps(document | own, indent=2, sort_keys=True, default=str)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    write_weights(tensors, folder, WEIGHTS_FILE, ONE_FILE)


def read_adapters(directory: Path, expected: Mapping[str, Tensor]) -> dict[str, Adapter]:
    """The adapters of a checkpoint by the name of their weight. ``expected`` are the tensors of the model, which may be
    without data. Raises FlasharError that names every problem.
    """
    config, path = _read_config(directory), directory / FOLDER / WEIGHTS_FILE
    state = read_safetensors(path)
    found, problems = {}, []
    for layer in sorted({name.rpartition(".lora_")[0] for name in state}):
        a_RI, b_OR = (state.pop(f"{layer}.lora_{letter}.weight", None) for letter in "AB")
        name = _OURS + layer.removeprefix(_THEIRS) + ".weight"
        problem = _problem(a_RI, b_OR, expected.get(name), config.r)
        if problem is None and a_RI is not None and b_OR is not None:
            found[name] = Adapter(a_RI, b_OR, config.lora_alpha / config.r)
        else:
            problems.append(f"{layer} {problem}")
    problems += [f"unexpected {name}" for name in state]
    if problems or not found:
        raise FlasharError(f"{path} does not fit its checkpoint: {describe_problems(problems) or 'it is empty'}")
    return found


@torch.no_grad()
def merge_adapters(model: nn.Module, directory: Path) -> None:
    """Adds the adapters of a checkpoint to the weights of its model. Raises FlasharError."""
    state = model.state_dict()
    for name, adapter in read_adapters(directory, state).items():
        weight = state[name]
        a_RI, b_OR = adapter.a_RI.to(weight.device), adapter.b_OR.to(weight.device)
        weight.copy_(Adapter(a_RI, b_OR, adapter.scale).added_to(weight))


def describe(directory: Path) -> dict[str, Any]:
    """What `inspect` says of a checkpoint's adapters: ``rank``, ``alpha``, ``targets``. Raises FlasharError."""
    config = _read_config(directory)
    return {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}


def _read_config(directory: Path) -> AdapterConfig:
    path = directory / FOLDER / CONFIG_FILE
    return validated(read_json(path), AdapterConfig, str(path), "of plain low-rank adapters")


def _problem(a_RI: Tensor | None, b_OR: Tensor | None, weight_OI: Tensor | None, rank: int) -> str | None:
    if weight_OI is None or weight_OI.ndim != 2:
        return "is no linear layer of this model"
    if a_RI is None or b_OR is None:
        return "lacks one of its two matrices"
    wanted = ([rank, weight_OI.shape[1]], [weight_OI.shape[0], rank])
    if (list(a_RI.shape), list(b_OR.shape)) != wanted:
        return f"has matrices {list(a_RI.shape)} and {list(b_OR.shape)}, expected {wanted[0]} and {wanted[1]}"
    if any(part.dtype not in WEIGHT_DTYPES or not bool(part.isfinite().all()) for part in (a_RI, b_OR)):
        return "has values that are no finite numbers"
    return None
