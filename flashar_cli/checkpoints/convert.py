"""From upstream files to a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from flashar_cli.checkpoints.checkpoint import (
    TEXT_TOKENIZER_FILE,
    Loaded,
    model_on_meta,
    state_problems,
    tokenizer_on_meta,
)
from flashar_cli.config import ModelConfig, explain
from flashar_cli.errors import FlasharError
from flashar_cli.families import family_of, get_family
from flashar_cli.families.base import TOKENIZER, ConvertOptions
from flashar_cli.families.source import Source
from flashar_cli.files.tensors import describe_problems, save_pickle
from flashar_cli.files.writing import atomic_files
from flashar_cli.inputs.reading import files_sha256
from flashar_cli.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Converted:
    """A model ready to be saved. ``extras`` are files to save with it; ``notes`` say which facts were assumed."""

    config: ModelConfig
    model_state: dict[str, Tensor]
    tokenizer_state: dict[str, Tensor] | None
    extras: dict[str, Path]
    notes: tuple[str, ...]


def convert(path: Path, options: ConvertOptions, tokenizer_path: Path | None) -> Converted:
    """Translates upstream files, and those of a separate image tokenizer where one is given. Raises FlasharError that
    lists every problem by upstream's names.
    """
    source = Source(path)
    family = family_of(source, options.family)
    vq, vq_state = None, None
    if tokenizer_path is not None:
        vq, vq_state = family.read_tokenizer(Source(tokenizer_path, "an image tokenizer (.pt or .safetensors)"))
        wanted = family.tokenizer_to_upstream(tokenizer_on_meta(vq).state_dict())
        problems = state_problems(wanted, family.tokenizer_to_upstream(vq_state))
        _refuse(problems, tokenizer_path, f"{family.tokenizer_title}")
    try:
        facts = family.read(source, options, vq)
        if facts.tokenizer is not None and facts.tokenizer.codebook_size != facts.backbone.vocab_size:
            raise FlasharError(
                f"{tokenizer_path or path} has {facts.tokenizer.codebook_size} tokens, {path} predicts "
                f"{facts.backbone.vocab_size}; pass the tokenizer this model was trained with"
            )
        config = facts.config_of(path.name, files_sha256(source.files))
    except ValidationError as error:
        raise FlasharError(f"{path} with these options is no model: {explain(error)}") from None
    expected = model_on_meta(config).state_dict()
    if config.tokenizer is not None and vq_state is None:
        expected |= {
            TOKENIZER + name: tensor for name, tensor in tokenizer_on_meta(config.tokenizer).state_dict().items()
        }
    state = family.kept(source.state, config)
    problems = state_problems(family.to_upstream(expected, config), state)
    _refuse(problems, path, f"{family.name} with {config.backbone.num_layers} blocks")
    ours = family.to_ours(state, expected, config)
    if config.tokenizer is not None and vq_state is None:
        vq_state = {name.removeprefix(TOKENIZER): ours.pop(name) for name in expected if name.startswith(TOKENIZER)}
    return Converted(config, ours, vq_state, _text_tokenizer(source, family.text_tokenizer), facts.notes)


def export(loaded: Loaded) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The model's tensors under upstream's names, and the image tokenizer's where upstream keeps it in a separate file.
    Raises FlasharError for a part that upstream does not have.
    """
    family, state = get_family(loaded.config.family), loaded.model.state_dict()
    vq = None if loaded.tokenizer is None else loaded.tokenizer.state_dict()
    if family.tokenizer_title is None and vq is not None:
        state.update({TOKENIZER + name: tensor for name, tensor in vq.items()})
        vq = None
    return family.to_upstream(state, loaded.config), None if vq is None else family.tokenizer_to_upstream(vq)


def write_upstream(states: Mapping[Path, Mapping[str, Tensor]]) -> None:
    """Writes each ``{"model": state}`` as a ``.pt`` file, or the bare tensors as ``.safetensors``; all or none."""
    with atomic_files(*states) as files:
        for (path, state), file in zip(states.items(), files, strict=True):
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            if path.suffix == ".safetensors":
                file.write(save(tensors))
            else:
                save_pickle({"model": tensors}, file)


def _text_tokenizer(source: Source, name: str | None) -> dict[str, Path]:
    """The text tokenizer of a directory that has one."""
    if name is None or not (source.path / name).exists():
        return {}
    TextTokenizer(source.path / name)  # refused now rather than when the model is used
    return {TEXT_TOKENIZER_FILE: source.path / name}


def _refuse(problems: list[str], path: Path, expected: str) -> None:
    if problems:
        raise FlasharError(f"{path} is not a complete {expected}: {describe_problems(problems)}")
