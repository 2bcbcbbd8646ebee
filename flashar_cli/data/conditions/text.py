"""Prompts, which models read as text tokens.

Letters: M prompts, B prompts of a batch, P positions of the longest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, StrictInt

from flashar_cli.config import Config, TextPrefix, validated
from flashar_cli.data.conditions.base import Captions, ConditionKind, Given
from flashar_cli.data.sources.base import Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.inputs.reading import read_json
from flashar_cli.machine.memory import require_memory
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.text import left_padded, unconditional
from flashar_cli.tokenizers.text import TextTokenizer

Row = Annotated[list[Annotated[StrictInt, bounds.TOKEN_ID]], Field(min_length=1)]
TOKEN_BYTES = 2 * (8 + 1)  # an id and its mask, of the prompt and of the unconditional one


class PromptTokens(Config):
    """A file of ``--prompt-tokens``: the ids of each prompt, and of its unconditional prompt where the rule of the
    prefix does not make it.
    """

    cond: list[Row] = Field(min_length=1)
    uncond: list[Row] | None = None


@dataclass(frozen=True)
class Prompts(Captions):
    """Captions ``texts`` [M] with their ids ``tokens``, M lists of different lengths."""

    texts: NDArray[np.object_]
    tokens: NDArray[np.object_]
    prefix: TextPrefix

    def take(self, rows: NDArray[np.integer] | slice) -> Prompts:
        return Prompts(self.texts[rows], self.tokens[rows], self.prefix)

    def conditions(self) -> Conditions:
        return padded(self.tokens.tolist(), self.prefix)


class TextConditions(ConditionKind):
    """One prompt an image. Token shards hold its text; reading them makes the ids."""

    prefix: TextPrefix

    @property
    def wanted(self) -> Wanted:
        return Wanted(None)

    def parse(self, given: Given, device: torch.device) -> tuple[Conditions, list[str]]:
        given.require_one("made for prompts", ("--prompt", "--prompt-tokens"))
        if given.prompts:
            return padded([self.token_ids(prompt) for prompt in given.prompts], self.prefix), given.prompts
        conditions = read_prompt_tokens(Path(str(given.prompt_tokens)), self.prefix)
        return conditions, [f"prompt {k}" for k in range(len(conditions))]

    def check_ready(self) -> None:
        self._tokenizer()

    def read(self, values: list[Any], features: list[Path], where: Path) -> Prompts:
        """Captions of more than ``max_length`` tokens are cut at their end."""
        tokens = np.empty(len(values), dtype=object)
        for row, text in enumerate(values):
            tokens[row] = self.fitting_ids(text)
        return Prompts(np.array(values, dtype=object), tokens, self.prefix)

    def token_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt in its template, with those before and after it."""
        prefix = self.prefix
        text = prefix.template.replace("{prompt}", prompt)
        return [*prefix.begin, *self._tokenizer().encode(text), *prefix.end]

    def fitting_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt, cut at its end to ``max_length`` tokens. Raises FlasharError for a template that is
        longer.
        """
        most, ids = self.prefix.max_length, self.token_ids(prompt)
        if len(ids) <= most:
            return ids
        end = bisect_right(range(len(prompt)), most, key=lambda count: len(self.token_ids(prompt[:count]))) - 1
        if end < 0:
            raise FlasharError(f"this model's prompts hold {most} tokens, too few for its template; mend its config")
        return self.token_ids(prompt[:end])

    def _tokenizer(self) -> TextTokenizer:
        if self.text_tokenizer is None:
            raise FlasharError(
                "this checkpoint has no text tokenizer to read prompts with; generate takes their ids by "
                "--prompt-tokens FILE, or convert the model together with its tokenizer.json"
            )
        return self.text_tokenizer


def read_prompt_tokens(path: Path, prefix: TextPrefix) -> Conditions:
    """The prompts of a file ``{"cond": [[..]], "uncond": [[..]]}``. Raises FlasharError for other content, and for ids
    that the model does not know.
    """
    where = f"--prompt-tokens {path}"
    given = validated(read_json(path, where), PromptTokens, where, 'of the form {"cond": [[ids]], "uncond": [[ids]]}')
    if given.uncond is not None and len(given.uncond) != len(given.cond):
        raise FlasharError(
            f"{where} has {len(given.cond)} rows in cond and {len(given.uncond)} in uncond; expected as many"
        )
    highest = max(max(row) for row in [*given.cond, *(given.uncond or [])])
    if highest >= prefix.vocab_size:
        raise FlasharError(f"{where} has the id {highest}; this model's text tokens are 0..{prefix.vocab_size - 1}")
    return padded(given.cond, prefix, given.uncond)


def padded(
    prompts: Sequence[list[int]], prefix: TextPrefix, unconditionals: Sequence[list[int]] | None = None
) -> Conditions:
    """The conditions of these prompts, left-padded to the longest, with ``unconditionals``; None: made by the rule of
    the prefix. Raises FlasharError for more tokens than the model takes.
    """
    longest = max(map(len, [*prompts, *(unconditionals or [])]), default=1)
    if longest > prefix.max_length:
        raise FlasharError(f"a prompt has {longest} tokens; this model takes 1 to {prefix.max_length}; shorten it")
    require_memory(f"{len(prompts)} prompts of up to {longest} tokens", len(prompts) * longest * TOKEN_BYTES)
    ids_BP, mask_BP = left_padded(list(prompts), prefix.pad_id, longest)
    uncond_ids_BP, uncond_mask_BP = unconditional(ids_BP, prefix), mask_BP
    if unconditionals is not None:
        uncond_ids_BP, uncond_mask_BP = left_padded(list(unconditionals), prefix.pad_id, longest)
    return Conditions(ids=ids_BP, mask=mask_BP, uncond_ids=uncond_ids_BP, uncond_mask=uncond_mask_BP)
