"""The one checkpoint format: a directory with ``config.json``, ``model.safetensors`` (sharded with an index when
large) and, where the model can make pictures, ``tokenizer.safetensors``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from huggingface_hub import save_torch_state_dict
from pydantic import AfterValidator
from safetensors import SafetensorError
from torch import Tensor, nn

from flashar_cli.config import CONFIG_FILE, Config, ModelConfig, read_config, validated
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_directory
from flashar_cli.kinds import ANYTHING, HTML, JSON_LINES, PNG, SAFETENSORS, FolderKind, json_object
from flashar_cli.machine import require_memory
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.sizes import model_weights
from flashar_cli.reading import open_file, plain_name, read_json
from flashar_cli.tensorfiles import WEIGHT_DTYPES, open_safetensors, read_safetensors
from flashar_cli.tokenizers.vq import VQTokenizer

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.safetensors"
MAX_SHARD_SIZE = "5GB"

# The weights, and what `adapt` and `probe` leave beside them.
CHECKPOINT = FolderKind(
    "a checkpoint",
    {
        r"config\.json": json_object("a config", "format_version", "family", "backbone"),
        r"(model|tokenizer)(-\d{5}-of-\d{5})?\.safetensors": SAFETENSORS,
        r"(model|tokenizer)\.safetensors\.index\.json": json_object("an index", "weight_map"),
        r"metrics\.jsonl": JSON_LINES,
        r"report\.html": HTML,
        r"gate-map\.png|samples-\w+\.png|probe\.png": PNG,
        r"probe\.json": json_object("a probe's report", "recommended_layer", "layers"),
        r"tensorboard/|tensorboard/events\.out\.tfevents\..+": ANYTHING,
    },
    needs=(CONFIG_FILE,),
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ShardIndex(Config):
    """``model.safetensors.index.json``: which file of the directory each tensor is in."""

    metadata: dict[str, Any] | None = None
    weight_map: dict[str, Annotated[str, AfterValidator(plain_name)]]


@dataclass(frozen=True)
class Loaded:
    """A model in memory. ``tokenizer`` is None where the checkpoint has none: then only tokens can be made."""

    model: FlasharModel
    tokenizer: VQTokenizer | None

    @property
    def config(self) -> ModelConfig:
        return self.model.config


def load(
    directory: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    vq_dtype: torch.dtype | None = torch.float32,
) -> Loaded:
    """Loads a checkpoint strictly; every missing, unexpected, mis-shaped or not finite tensor is named at once.

    ``dtype`` of the model and ``vq_dtype`` of the tokenizer: None keeps what is stored.
    """
    config = read_config(directory)
    refuse_too_large(config, str(directory), device, dtype or torch.bfloat16)
    model = _assign(_on_meta(lambda: FlasharModel(config)), _read_weights(directory), directory, device, dtype)
    tokenizer = None
    if config.tokenizer is not None:
        vq = config.tokenizer
        state = _read_file(directory / TOKENIZER_FILE)
        tokenizer = _assign(_on_meta(lambda: VQTokenizer(vq)), state, directory / TOKENIZER_FILE, device, vq_dtype)
    return Loaded(model.eval(), None if tokenizer is None else tokenizer.eval())


def refuse_too_large(config: ModelConfig, what: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises FlasharError where the weights of a model and of its tokenizer have no room on the device."""
    num_bytes = model_weights(config) * dtype.itemsize
    if config.tokenizer is not None:
        vq = config.tokenizer
        num_bytes += 4 * sum(parameter.numel() for parameter in _on_meta(lambda: VQTokenizer(vq)).parameters())
    require_memory(what, num_bytes, device)


def save(
    directory: Path,
    config: ModelConfig,
    model_state: Mapping[str, Tensor],
    tokenizer_state: Mapping[str, Tensor] | None,
    overwrite: bool = False,
    extras: Mapping[str, Path] | None = None,
) -> None:
    """Writes a checkpoint atomically: a temporary directory beside it, fsynced, then renamed.

    ``extras`` maps names to files (reports, pictures) that are copied in. Raises FlasharError where ``directory``
    exists and is not empty, unless ``overwrite`` and it is a checkpoint and nothing else.
    """
    if (config.tokenizer is None) != (tokenizer_state is None):
        raise AssertionError("a tokenizer's config and weights go together")
    with atomic_directory(directory, CHECKPOINT, overwrite) as folder:
        (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _save_weights(model_state, folder, MODEL_FILE)
        if tokenizer_state is not None:
            _save_weights(tokenizer_state, folder, TOKENIZER_FILE)
        for name, source in (extras or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def problems(directory: Path) -> list[str]:
    """Everything that keeps a checkpoint from being loaded, model and tokenizer; its config must be readable."""
    config = read_config(directory)
    found: list[str] = []
    parts: list[tuple[str, Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = [
        (MODEL_FILE, lambda: FlasharModel(config), lambda: _read_weights(directory))
    ]
    if config.tokenizer is not None:
        vq = config.tokenizer
        parts.append((TOKENIZER_FILE, lambda: VQTokenizer(vq), lambda: _read_file(directory / TOKENIZER_FILE)))
    for name, build, read in parts:
        try:
            found += [f"{name}: {line}" for line in state_problems(_on_meta(build).state_dict(), read())]
        except FlasharError as error:
            found.append(str(error))
    return found


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the stored output head, which stands for the whole file."""
    for path in _model_files(directory):
        with open_safetensors(path) as file:
            if "backbone.head.weight" in file.keys():  # noqa: SIM118 - not a dict
                return file.get_tensor("backbone.head.weight").dtype
    raise FlasharError(f"{directory} has no output head; run `flashar inspect {directory}`")


def weights_sha256(directory: Path) -> str:
    """SHA-256 over the weight files, in order of their names."""
    digest = hashlib.sha256()
    tokenizer = directory / TOKENIZER_FILE
    for path in sorted([*_model_files(directory), *([tokenizer] if tokenizer.exists() else [])]):
        with open_file(path) as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def state_problems(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from being loaded: missing, unexpected, mis-shaped and not finite tensors."""
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        if expected[name].shape != state[name].shape:
            problems.append(f"{name} is {list(state[name].shape)}, expected {list(expected[name].shape)}")
        elif state[name].dtype not in WEIGHT_DTYPES:
            kinds = ", ".join(_dtype_name(dtype) for dtype in WEIGHT_DTYPES)
            problems.append(f"{name} is {_dtype_name(state[name].dtype)}, expected one of {kinds}")
        elif not bool(torch.isfinite(state[name]).all()):
            problems.append(f"{name} has NaN or infinite values")
    return sorted(problems)


def describe_problems(problems: list[str], most: int = 8) -> str:
    """Problems on one line, the first few by name."""
    rest = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + rest


def _on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    with torch.device("meta"):
        return build()


def _assign(
    module: ModuleT, state: dict[str, Tensor], where: Path, device: torch.device, dtype: torch.dtype | None
) -> ModuleT:
    problems = state_problems(module.state_dict(), state)
    if problems:
        raise FlasharError(f"{where} does not match its {CONFIG_FILE}: {describe_problems(problems)}")
    module.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    return module


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_index(directory: Path) -> ShardIndex | None:
    """None where the weights are in one file."""
    path = directory / INDEX_FILE
    if not os.path.lexists(path):
        return None
    return validated(read_json(path), ShardIndex, str(path), "an index of safetensors files")


def _model_files(directory: Path) -> list[Path]:
    """The weight files of the model."""
    index = _read_index(directory)
    names = {MODEL_FILE} if index is None else set(index.weight_map.values())
    return [directory / name for name in sorted(names)]


def _read_weights(directory: Path) -> dict[str, Tensor]:
    index = _read_index(directory)
    if index is None:
        return _read_file(directory / MODEL_FILE)
    state: dict[str, Tensor] = {}
    problems: list[str] = []
    for path in _model_files(directory):
        for name, tensor in _read_file(path).items():
            if index.weight_map.get(name) == path.name:
                state[name] = tensor
            else:
                problems.append(f"{path.name} holds {name}, which the index has in {index.weight_map.get(name)}")
    problems += [f"{place} lacks {name}" for name, place in index.weight_map.items() if name not in state]
    if problems:
        raise FlasharError(f"{directory / INDEX_FILE} does not match its files: {describe_problems(problems)}")
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FlasharError(f"{path} is missing; copy the whole checkpoint directory, or convert the model again")
    return read_safetensors(path)


def _save_weights(state: Mapping[str, Tensor], directory: Path, name: str) -> None:
    try:
        save_torch_state_dict(
            # Cloned: safetensors refuses tensors that share memory, as tied weights do.
            {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()},
            directory,
            filename_pattern=name.replace(".safetensors", "{suffix}.safetensors"),
            max_shard_size=MAX_SHARD_SIZE,
        )
    except SafetensorError as error:  # what a full disk looks like from here
        raise OSError(str(error)) from error
