"""From an upstream file to a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from flashar_cli import __version__
from flashar_cli.checkpoint import describe_problems, state_problems
from flashar_cli.config import GenerationDefaults, GridConfig, ModelConfig, Provenance, VQConfig, explain
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import Family
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers.upstream import STATISTICS, config_from_state
from flashar_cli.tokenizers.vq import VQTokenizer
from flashar_cli.upstream.facts import ConvertOptions, Facts
from flashar_cli.upstream.reading import file_sha256, guess_family, read_state


@dataclass(frozen=True)
class Converted:
    """A model ready to be saved. ``notes`` say which facts came from a preset rather than from the file."""

    config: ModelConfig
    model_state: dict[str, Tensor]
    tokenizer_state: dict[str, Tensor] | None
    notes: tuple[str, ...]


def convert(path: Path, options: ConvertOptions, tokenizer_path: Path | None) -> Converted:
    """Translates an upstream GPT file, and a tokenizer file if given. Raises FlasharError that lists every problem."""
    upstream = read_state(path)
    family = guess_family(upstream, options.family, path)
    tokenizer_state, tokenizer_config = None, None
    if tokenizer_path is not None:
        tokenizer_state = read_state(tokenizer_path)
        for statistic in STATISTICS:
            tokenizer_state.pop(statistic, None)
        tokenizer_config = config_from_state({name: tuple(t.shape) for name, t in tokenizer_state.items()})
        _refuse(state_problems(_shapes_of(tokenizer_config), tokenizer_state), tokenizer_path, "LlamaGen VQ tokenizer")
    try:
        facts = Facts(upstream, path, options, family, tokenizer_config)
    except ValidationError as error:
        raise FlasharError(f"{path} with these options is no model: {explain(error)}") from None
    if tokenizer_config is not None and tokenizer_config.codebook_size != facts.backbone.vocab_size:
        raise FlasharError(
            f"{tokenizer_path} has {tokenizer_config.codebook_size} codes, {path} predicts "
            f"{facts.backbone.vocab_size}; pass the tokenizer this model was trained with"
        )
    config = ModelConfig(
        family=family.name,
        backbone=facts.backbone,
        prefix=facts.prefix,
        grid=GridConfig(height=facts.grid.height, width=facts.grid.width),
        branch=facts.branch,
        tokenizer=tokenizer_config,
        generation=facts.preset.generation if facts.preset else GenerationDefaults(),
        provenance=Provenance(tool_version=__version__, source=path.name, source_sha256=file_sha256(path)),
    )
    num_layers = facts.backbone.num_layers
    state, foreign = {}, []
    for name, tensor in upstream.items():
        ours = family.to_ours(name, num_layers)
        if ours is not None:
            state[ours] = tensor
        elif name not in family.dropped_keys:
            foreign.append(f"unexpected {name}")
    with torch.device("meta"):
        expected = FlasharModel(config).state_dict()
    problems = state_problems(expected, state)
    named = [_in_upstream_words(problem, family, num_layers) for problem in problems]
    _refuse(sorted(named + foreign), path, f"{family.name} with {num_layers} blocks")
    return Converted(config, state, tokenizer_state, facts.notes)


def _shapes_of(config: VQConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return VQTokenizer(config).state_dict()


def _in_upstream_words(problem: str, family: Family, num_layers: int) -> str:
    words = problem.split(" ")
    place = 1 if words[0] in ("missing", "unexpected") else 0
    words[place] = family.to_upstream(words[place], num_layers)
    return " ".join(words)


def _refuse(problems: list[str], path: Path, expected: str) -> None:
    if problems:
        raise FlasharError(f"{path} is not a complete {expected}: {describe_problems(problems)}")
