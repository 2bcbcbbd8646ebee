"""From upstream files to a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.checkpoints.parts import (
    split_tokenizer,
    state_problems,
    tokenizer_on_meta,
    tokenizer_part,
    upstream_part,
)
from flashar_cli.config import ModelConfig, TextPrefix, explain
from flashar_cli.errors import FlasharError
from flashar_cli.families import family_of, get_family
from flashar_cli.families.base import TOKENIZER, ConvertOptions
from flashar_cli.families.source import Source
from flashar_cli.files.lazy import Lazy, lazily
from flashar_cli.files.shards import write_tensors
from flashar_cli.files.tensors import describe_problems, save_pickle
from flashar_cli.files.writing import atomic_files
from flashar_cli.inputs.reading import files_sha256
from flashar_cli.tokenizers.text import find_text_tokenizer


@dataclass(frozen=True)
class Converted:
    """A model ready to be saved, whose tensors are read as they are written: values that are not finite are refused
    then. ``files`` are those of the model, and have the tokenizer too where ``is_whole``; ``extras`` are to be saved
    with it; ``notes`` say which facts were assumed.
    """

    config: ModelConfig
    model_state: dict[str, Lazy]
    tokenizer_state: dict[str, Lazy] | None
    files: list[Path]
    is_whole: bool
    extras: dict[str, Path]
    notes: tuple[str, ...]

    def save(self, directory: Path, overwrite: bool = False) -> None:
        """Writes a checkpoint. Raises FlasharError as ``checkpoint.save``."""
        checkpoint.save(directory, self.config, self.model_state, self.tokenizer_state, overwrite, self.extras)

    def link(self, directory: Path, overwrite: bool = False) -> str:
        """Writes a checkpoint that links to ``files``. Returns the kind of links. Raises FlasharError as ``save``."""
        tokenizer = None if self.is_whole else self.tokenizer_state
        return checkpoint.link(directory, self.config, self.files, tokenizer, overwrite, self.extras)


def convert(
    path: Path, options: ConvertOptions, tokenizer_path: Path | None, text_tokenizer_path: Path | None = None
) -> Converted:
    """Translates upstream files, and those of a separate image tokenizer where one is given. The text tokenizer is in
    the folder of the weights or in one of its own. Raises FlasharError that lists every problem by upstream's names.
    """
    source = Source(path)
    family = family_of(source, options.family)
    vq = None
    state: dict[str, Lazy] = {}
    if tokenizer_path is not None:
        what = "an image tokenizer (.pt, .ckpt, .safetensors or a directory with model.ckpt)"
        vq, vq_state = family.read_tokenizer(Source(tokenizer_path, what))
        wanted, found = (family.tokenizer_to_upstream(each) for each in (tokenizer_on_meta(vq).state_dict(), vq_state))
        if problems := state_problems(wanted, found):
            title = f"a complete {family.tokenizer_title}"
            raise FlasharError(f"{tokenizer_path} is not {title}: {describe_problems(problems)}")
        state |= tokenizer_part(tokenizer_path, lambda: vq_state, vq).read("is damaged")
    try:
        options.refuse_others(source, family.needed)
        facts = family.read(source, options, vq)
        facts.check_tokenizer(tokenizer_path or path, path)
        config = facts.config_of(path.name)
    except ValidationError as error:
        raise FlasharError(f"{path} with these options is no model: {explain(error)}") from None
    part = upstream_part(path, lambda: source.state, family, config)
    state |= part.read(f"is not a complete {family.name} with {config.num_layers} blocks")
    extras = _text_tokenizer(text_tokenizer_path or source.path, family.text_tokenizer, config)
    if text_tokenizer_path is not None and not extras:
        expected = ", ".join(family.text_tokenizer) or f"none: family {family.name} reads no text"
        raise FlasharError(f"--text-tokenizer {text_tokenizer_path} has no text tokenizer; expected {expected}")
    provenance = config.provenance.model_copy(update={"source_sha256": files_sha256(source.files)})
    config = config.model_copy(update={"provenance": provenance})
    model_state, tokenizer_state = split_tokenizer(state)
    return Converted(
        config=config,
        model_state=model_state,
        tokenizer_state=tokenizer_state or None,
        files=source.files,
        is_whole=family.tokenizer_title is None,
        extras=extras,
        notes=facts.notes,
    )


def refuse_link(path: Path) -> None:
    """Raises FlasharError where a checkpoint can't link to upstream files."""
    if Source(path).is_pickle:
        raise FlasharError(
            f"--link: {path} is a pickle, which is read whole; expected safetensors, or leave --link out"
        )


def export(loaded: Loaded[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The model's tensors under upstream's names, and the image tokenizer's where upstream keeps it in a separate file.
    Raises FlasharError for a part that upstream does not have.
    """
    family, state = get_family(loaded.config.family), loaded.model.state_dict()
    vq = None if loaded.tokenizer is None else loaded.tokenizer.state_dict()
    if family.tokenizer_title is None and vq is not None:
        state.update({TOKENIZER + name: tensor for name, tensor in vq.items()})
        vq = None
    files = family.to_files(family.to_upstream(state, loaded.config), loaded.config)
    return files, None if vq is None else family.tokenizer_to_upstream(vq)


def write_upstream(states: Mapping[Path, Mapping[str, Tensor]]) -> None:
    """Writes each ``{"model": state}`` as a ``.pt`` file, or the bare tensors as ``.safetensors``; all or none."""
    with atomic_files(*states) as files:
        for (path, state), file in zip(states.items(), files, strict=True):
            if path.suffix == ".safetensors":
                write_tensors(lazily(state), file)
            else:
                save_pickle({"model": {name: tensor.contiguous() for name, tensor in state.items()}}, file)


def _text_tokenizer(folder: Path, names: Sequence[str], config: ModelConfig) -> dict[str, Path]:
    """The files of the text tokenizer of a directory that has one. Wrong ones are refused now rather than when the
    model is used.
    """
    if not isinstance(config.prefix, TextPrefix):
        return {}
    found = find_text_tokenizer(folder, names, config.prefix.vocab_size)
    return {} if found is None else found.copies
