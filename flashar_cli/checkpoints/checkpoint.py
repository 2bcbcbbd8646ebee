"""The one checkpoint format: a directory with ``config.json``, ``model.safetensors`` (sharded with an index when
large), ``tokenizer.safetensors`` where the model can make images, the files of a text tokenizer where it reads prompts,
and ``adapter/`` where low-rank adapters are apart from the weights. The weights may instead be links to upstream's
files, which ``config.json`` then says.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from flashar_cli.checkpoints import adapters
from flashar_cli.checkpoints.parts import (
    TOKENIZER_FILE,
    checkpoint_parts,
    model_on_meta,
    open_checkpoint,
    split_tokenizer,
    tokenizer_on_meta,
)
from flashar_cli.config import CONFIG_FILE, ModelConfig, TextPrefix, read_config
from flashar_cli.config.model import Layout
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import (
    ANYTHING,
    HTML,
    JSON_LINES,
    LINKED_SAFETENSORS,
    PNG,
    SAFETENSORS,
    FolderKind,
    begins_with,
    json_object,
)
from flashar_cli.files.lazy import Lazy, lazily
from flashar_cli.files.shards import MODEL_FILE, link_weights, weight_files, write_weights
from flashar_cli.files.writing import atomic_directory
from flashar_cli.inputs.reading import files_sha256
from flashar_cli.machine.memory import require_disk, require_memory
from flashar_cli.models.base import TokenModel
from flashar_cli.tokenizers.text import KINDS, TextTokenizer, find_text_tokenizer

MAX_SHARD_SIZE = "5GB"

# The weights, and what `adapt` and `probe` leave beside them.
CHECKPOINT = FolderKind(
    "a checkpoint",
    {
        r"config\.json": json_object("a config", "format_version", "family", "backbone"),
        r"(model|tokenizer)(-\d{5}-of-\d{5})?\.safetensors": LINKED_SAFETENSORS,
        r"(model|tokenizer)\.safetensors\.index\.json": json_object("an index", "weight_map"),
        r"text_tokenizer\.json": json_object("a text tokenizer", "model"),
        r"text_tokenizer\.tiktoken": begins_with("a tiktoken vocabulary", b"", b" 0\n", b" 1\n"),
        r"text_tokenizer_special\.txt": begins_with("special tokens", b"<|"),
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
ModelT = TypeVar("ModelT", bound=TokenModel)


@dataclass(frozen=True)
class Loaded(Generic[ModelT]):
    """A model in memory. ``tokenizer`` is None where the checkpoint has none, so that only tokens can be made;
    ``text_tokenizer`` likewise, so that no prompts can be read.
    """

    model: ModelT
    tokenizer: Any
    text_tokenizer: TextTokenizer | None = None

    @property
    def config(self) -> Any:
        return self.model.config


def load(
    directory: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    vq_dtype: torch.dtype | None = torch.float32,
) -> Loaded[Any]:
    """Loads a checkpoint strictly, tensor by tensor. Raises FlasharError that names every missing, unexpected and
    mis-shaped tensor before any is read, or the first whose values are not finite. ``dtype`` is that of the model,
    ``vq_dtype`` that of the tokenizer; None keeps what is stored.
    """
    config = read_config(directory)
    refuse_too_large(config, str(directory), device, dtype or torch.bfloat16)
    model_state, tokenizer_state = open_checkpoint(directory, config)
    model = _assign(model_on_meta(config), model_state, device, dtype)
    if config.adapter:
        adapters.merge_adapters(model, directory)
    return Loaded(model, *_tokenizers(directory, config, tokenizer_state, device, vq_dtype))


def load_outline(directory: Path, device: torch.device) -> Loaded[Any]:
    """As ``load``, but the model has no data: for work that needs the tokenizers alone, and for weights that are read
    in shards.
    """
    config = read_config(directory)
    state: dict[str, Lazy] = {}
    if config.tokenizer is not None:
        *_, part = checkpoint_parts(directory, config)  # the last has the image tokenizer
        state = split_tokenizer(part.read(f"does not match its {CONFIG_FILE}"))[1]
    return Loaded(model_on_meta(config), *_tokenizers(directory, config, state, device, torch.float32))


def read_text_tokenizer(directory: Path, config: ModelConfig) -> TextTokenizer | None:
    """The text tokenizer of a checkpoint; None where it has none. Raises FlasharError for files that are damaged or of
    another model.
    """
    if not isinstance(config.prefix, TextPrefix):
        return None
    found = (find_text_tokenizer(directory, kind.names, config.prefix.vocab_size) for kind in KINDS)
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)


def refuse_too_large(config: ModelConfig, what: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises FlasharError where the device has no room for the weights of a model and of its tokenizer."""
    num_bytes = config.num_weights * dtype.itemsize
    if config.tokenizer is not None:
        num_bytes += 4 * sum(parameter.numel() for parameter in tokenizer_on_meta(config.tokenizer).parameters())
    require_memory(what, num_bytes, device)


def save(
    directory: Path,
    config: ModelConfig,
    model_state: Mapping[str, Lazy | Tensor],
    tokenizer_state: Mapping[str, Lazy | Tensor] | None,
    overwrite: bool = False,
    extras: Mapping[str, Path] | None = None,
) -> None:
    """Writes a checkpoint atomically, tensor by tensor: to a temporary directory beside it, which is fsynced and then
    renamed.

    Tensors may be made only when they are written. ``extras`` maps names to files (reports, images) that are copied in.
    Raises FlasharError where ``directory`` exists and is not empty, unless ``overwrite`` is set and it holds a
    checkpoint and nothing else.
    """
    assert (config.tokenizer is None) == (tokenizer_state is None), "a tokenizer's config and weights go together"
    states = {MODEL_FILE: lazily(model_state), TOKENIZER_FILE: lazily(tokenizer_state or {})}
    num_bytes = sum(tensor.num_bytes for state in states.values() for tensor in state.values())
    require_disk("the checkpoint", num_bytes, directory)
    with _new_checkpoint(directory, config, "flashar", overwrite, extras or {}) as folder:
        for name, state in states.items():
            if state:
                write_weights(state, folder, name, MAX_SHARD_SIZE)


def link(
    directory: Path,
    config: ModelConfig,
    files: Sequence[Path],
    tokenizer_state: Mapping[str, Lazy | Tensor] | None,
    overwrite: bool = False,
    extras: Mapping[str, Path] | None = None,
) -> str:
    """Writes a checkpoint as ``save``, whose weights are links to upstream's ``files``, in safetensors. A tokenizer is
    written where it is not among them. Returns the kind of links: hard or symbolic.
    """
    with _new_checkpoint(directory, config, "upstream", overwrite, extras or {}) as folder:
        hard = link_weights(files, folder)
        if tokenizer_state is not None:
            write_weights(lazily(tokenizer_state), folder, TOKENIZER_FILE, MAX_SHARD_SIZE)
    return "hard" if hard else "symbolic"


def take_part(model_state: Mapping[str, Lazy]) -> None:
    """Makes the tensors that another process, in ``save``, makes at the same time, and drops them."""
    write_weights(model_state, None, MODEL_FILE, MAX_SHARD_SIZE)


def problems(directory: Path) -> list[str]:
    """Every reason why a checkpoint cannot be loaded, of model and tokenizers: of the files' headers or, where these
    are right, of the values. Raises FlasharError without a config.
    """
    config = read_config(directory)
    found: list[str] = []
    for part in checkpoint_parts(directory, config):
        try:
            found += [f"{part.place.name}: {line}" for line in part.problems()]
        except FlasharError as error:
            found.append(str(error))
    try:
        read_text_tokenizer(directory, config)
        if config.adapter:
            adapters.read_adapters(directory, model_on_meta(config).state_dict())
    except FlasharError as error:
        found.append(str(error))
    if found:
        return found
    for state in open_checkpoint(directory, config):
        for tensor in state.values():
            try:
                tensor.read()
            except FlasharError as error:
                found.append(str(error))
    return found


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the largest stored tensor, taken for that of all weights. Norms may be stored in a wider one."""
    model, _ = open_checkpoint(directory, read_config(directory))
    return max(model.values(), key=lambda tensor: math.prod(tensor.shape)).dtype


def weights_sha256(directory: Path) -> str:
    """SHA-256 over the weight files, those of adapters included, in order of their names."""
    others = [directory / TOKENIZER_FILE]
    if read_config(directory).adapter:
        others += [directory / name for name in adapters.FILES]
    return files_sha256(sorted([*weight_files(directory), *(path for path in others if path.exists())]))


@contextmanager
def _new_checkpoint(
    directory: Path, config: ModelConfig, weights: Layout, overwrite: bool, extras: Mapping[str, Path]
) -> Iterator[Path]:
    """The folder for a checkpoint's weights, to which config and extras are added."""
    with atomic_directory(directory, CHECKPOINT, overwrite) as folder:
        document = config.model_copy(update={"weights": weights}).model_dump_json(indent=2)
        (folder / CONFIG_FILE).write_text(document + "\n", encoding="utf-8")
        yield folder
        for name, source in extras.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def _tokenizers(
    directory: Path, config: ModelConfig, state: Mapping[str, Lazy], device: torch.device, dtype: torch.dtype | None
) -> tuple[Any, TextTokenizer | None]:
    image = None if config.tokenizer is None else _assign(tokenizer_on_meta(config.tokenizer), state, device, dtype)
    return image, read_text_tokenizer(directory, config)


def _assign(module: ModuleT, state: Mapping[str, Lazy], device: torch.device, dtype: torch.dtype | None) -> ModuleT:
    """Fills a module on the meta device. Beside it only one tensor is in memory at a time."""
    module.load_state_dict({name: lazy.read().to(device, dtype) for name, lazy in state.items()}, assign=True)
    return module.eval()
