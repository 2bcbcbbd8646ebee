"""The one checkpoint format: a directory with ``config.json``, ``model.safetensors`` (sharded with an index when
large), ``tokenizer.safetensors`` where the model can make images, ``text_tokenizer.json`` where it reads prompts, and
``adapter/`` where low-rank adapters are apart from the weights.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from flashar_cli.checkpoints import adapters
from flashar_cli.config import CONFIG_FILE, ModelConfig, TokenizerConfig, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import ANYTHING, HTML, JSON_LINES, PNG, SAFETENSORS, FolderKind, json_object
from flashar_cli.files.streaming import Later, save_tensors
from flashar_cli.files.tensors import (
    MODEL_FILE,
    WEIGHT_DTYPES,
    describe_problems,
    open_safetensors,
    read_safetensors,
    read_weights,
    weight_files,
)
from flashar_cli.files.writing import atomic_directory
from flashar_cli.inputs.reading import files_sha256
from flashar_cli.machine.memory import require_memory
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers import ImageTokenizer, build_tokenizer
from flashar_cli.tokenizers.text import TextTokenizer

TOKENIZER_FILE = "tokenizer.safetensors"
TEXT_TOKENIZER_FILE = "text_tokenizer.json"
MAX_SHARD_SIZE = "5GB"

# The weights, and what `adapt` and `probe` leave beside them.
CHECKPOINT = FolderKind(
    "a checkpoint",
    {
        r"config\.json": json_object("a config", "format_version", "family", "backbone"),
        r"(model|tokenizer)(-\d{5}-of-\d{5})?\.safetensors": SAFETENSORS,
        r"(model|tokenizer)\.safetensors\.index\.json": json_object("an index", "weight_map"),
        r"text_tokenizer\.json": json_object("a text tokenizer", "model"),
        rf"{adapters.FOLDER}/": ANYTHING,
        rf"{adapters.FOLDER}/{re.escape(adapters.CONFIG_FILE)}": json_object("an adapter's config", "peft_type"),
        rf"{adapters.FOLDER}/{re.escape(adapters.WEIGHTS_FILE)}": SAFETENSORS,
        r"metrics\.jsonl": JSON_LINES,
        r"report\.html": HTML,
        r"gate-map\.png|samples-\w+\.png|probe\.png": PNG,
        r"probe\.json": json_object("a probe's report", "recommended_layer", "layers"),
        r"tensorboard/|tensorboard/events\.out\.tfevents\..+": ANYTHING,
    },
    needs=(CONFIG_FILE,),
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Loaded:
    """A model in memory. ``tokenizer`` is None where the checkpoint has none, so that only tokens can be made;
    ``text_tokenizer`` likewise, so that no prompts can be read.
    """

    model: FlasharModel
    tokenizer: ImageTokenizer | None
    text_tokenizer: TextTokenizer | None = None

    @property
    def config(self) -> ModelConfig:
        return self.model.config


def load(
    directory: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    vq_dtype: torch.dtype | None = torch.float32,
) -> Loaded:
    """Loads a checkpoint strictly. Raises FlasharError that names every missing, unexpected, mis-shaped or not finite
    tensor. ``dtype`` is that of the model, ``vq_dtype`` that of the tokenizer; None keeps what is stored.
    """
    config = read_config(directory)
    refuse_too_large(config, str(directory), device, dtype or torch.bfloat16)
    model = _assign(model_on_meta(config), read_weights(directory, _read_file), directory, device, dtype)
    if config.adapter:
        adapters.merge_adapters(model, directory)
    return _with_tokenizers(model, directory, device, vq_dtype)


def load_outline(directory: Path, device: torch.device) -> Loaded:
    """A checkpoint whose model has no data, for weights that are read in shards. Raises FlasharError."""
    return _with_tokenizers(model_on_meta(read_config(directory)), directory, device, torch.float32)


def _with_tokenizers(
    model: FlasharModel, directory: Path, device: torch.device, vq_dtype: torch.dtype | None
) -> Loaded:
    config, tokenizer, path = model.config, None, directory / TOKENIZER_FILE
    if config.tokenizer is not None:
        tokenizer = _assign(tokenizer_on_meta(config.tokenizer), _read_file(path), path, device, vq_dtype)
    text_file = directory / TEXT_TOKENIZER_FILE
    return Loaded(model, tokenizer, TextTokenizer(text_file) if text_file.exists() else None)


def refuse_too_large(config: ModelConfig, what: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises FlasharError where the device has no room for the weights of a model and of its tokenizer."""
    num_bytes = config.num_weights * dtype.itemsize
    if config.tokenizer is not None:
        num_bytes += 4 * sum(parameter.numel() for parameter in tokenizer_on_meta(config.tokenizer).parameters())
    require_memory(what, num_bytes, device)


def save(
    directory: Path,
    config: ModelConfig,
    model_state: Mapping[str, Tensor | Later],
    tokenizer_state: Mapping[str, Tensor] | None,
    overwrite: bool = False,
    extras: Mapping[str, Path] | None = None,
) -> None:
    """Writes a checkpoint atomically: to a temporary directory beside it, which is fsynced and then renamed.

    Tensors may be made only when they are written. ``extras`` maps names to files (reports, images) that are copied in.
    Raises FlasharError where ``directory`` exists and is not empty, unless ``overwrite`` is set and it holds a
    checkpoint and nothing else.
    """
    assert (config.tokenizer is None) == (tokenizer_state is None), "a tokenizer's config and weights go together"
    with atomic_directory(directory, CHECKPOINT, overwrite) as folder:
        (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _save_weights(model_state, folder, MODEL_FILE)
        if tokenizer_state is not None:
            _save_weights(tokenizer_state, folder, TOKENIZER_FILE)
        for name, source in (extras or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def take_part(model_state: Mapping[str, Later]) -> None:
    """Makes the tensors that another process, in ``save``, makes at the same time, and drops them."""
    save_tensors(model_state, None, MODEL_FILE, MAX_SHARD_SIZE)


def problems(directory: Path) -> list[str]:
    """Every reason why a checkpoint cannot be loaded, of model and tokenizer. Raises FlasharError without a config."""
    config = read_config(directory)
    found: list[str] = []
    parts: list[tuple[Path, nn.Module, Callable[[Path], dict[str, Tensor]]]] = [
        (directory / MODEL_FILE, model_on_meta(config), lambda path: read_weights(directory, _read_file))
    ]
    if config.tokenizer is not None:
        parts.append((directory / TOKENIZER_FILE, tokenizer_on_meta(config.tokenizer), _read_file))
    for path, module, read in parts:
        try:
            found += [f"{path.name}: {line}" for line in state_problems(module.state_dict(), read(path))]
        except FlasharError as error:
            found.append(str(error))
    if config.adapter:
        try:
            adapters.read_adapters(directory, model_on_meta(config).state_dict())
        except FlasharError as error:
            found.append(str(error))
    return found


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the stored token table, taken for that of all weights. Norms may be stored in a wider one."""
    for path in weight_files(directory):
        with open_safetensors(path) as file:
            if "backbone.embedding.weight" in file.keys():  # noqa: SIM118 - not a dict
                return file.get_tensor("backbone.embedding.weight").dtype
    raise FlasharError(f"{directory} has no backbone; run `flashar inspect {directory}`")


def weights_sha256(directory: Path) -> str:
    """SHA-256 over the weight files, those of adapters included, in order of their names."""
    others = [directory / TOKENIZER_FILE]
    if read_config(directory).adapter:
        others += [directory / name for name in adapters.FILES]
    return files_sha256(sorted([*weight_files(directory), *(path for path in others if path.exists())]))


def state_problems(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Every reason why a state dict cannot be loaded: missing, unexpected, mis-shaped and not finite tensors."""
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


def model_on_meta(config: ModelConfig) -> FlasharModel:
    """A model without data."""
    with torch.device("meta"):
        return FlasharModel(config)


def tokenizer_on_meta(config: TokenizerConfig) -> ImageTokenizer:
    """An image tokenizer without data."""
    with torch.device("meta"):
        return build_tokenizer(config)


def _assign(
    module: ModuleT, state: dict[str, Tensor], where: Path, device: torch.device, dtype: torch.dtype | None
) -> ModuleT:
    problems = state_problems(module.state_dict(), state)
    if problems:
        raise FlasharError(f"{where} does not match its {CONFIG_FILE}: {describe_problems(problems)}")
    module.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    return module.eval()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FlasharError(f"{path} is missing; copy the whole checkpoint directory, or convert the model again")
    return read_safetensors(path)


def _save_weights(state: Mapping[str, Tensor | Later], directory: Path, name: str) -> None:
    tensors = {key: Later.of(each) if isinstance(each, Tensor) else each for key, each in state.items()}
    save_tensors(tensors, directory, name, MAX_SHARD_SIZE)
