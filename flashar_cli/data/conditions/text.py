"""Prompts, which models read as text tokens.

Letters: M prompts, B prompts of a batch, P positions of the longest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from flashar_cli.inputs.text import is_unicode, shown
from flashar_cli.machine.memory import require_memory
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.text import left_padded, unconditional
from flashar_cli.tokenizers.text import TextTokenizer

Row = Annotated[list[Annotated[StrictInt, bounds.TOKEN_ID]], Field(min_length=1)]
TOKEN_BYTES = 2 * (8 + 1)  # an id and its mask, of the prompt and of the unconditional one
MOST_CHARACTERS = 2**16  # of a prompt; the longest that any model takes has half as many tokens


class PromptTokens(Config):
    """A file of ``--prompt-tokens``: the whole prefix of each image in ids, and that of its unconditional prompt, one
    for all or one for each. Without ``uncond`` the model makes it, as of text.
    """

    cond: list[Row] = Field(min_length=1)
    uncond: list[Row] | None = None


@dataclass(frozen=True)
class Prompts(Captions):
    """Captions ``texts`` [M] with their ids ``tokens``, M lists of different lengths, and the ``unconditionals`` and
    the ``length`` of ``padded``.
    """

    texts: NDArray[np.object_]
    tokens: NDArray[np.object_]
    prefix: TextPrefix
    unconditionals: list[list[int]] | None
    length: int = 1

    def take(self, rows: NDArray[np.integer] | slice) -> Prompts:
        return replace(self, texts=self.texts[rows], tokens=self.tokens[rows])

    def of_one_shape(self) -> Prompts:
        return replace(self, length=max(map(len, self.tokens), default=1))

    def conditions(self) -> Conditions:
        return padded(self.tokens.tolist(), self.prefix, self.unconditionals, self.length)


class TextConditions(ConditionKind):
    """One prompt an image. Token shards hold its text; reading them makes the ids."""

    prefix: TextPrefix

    @property
    def wanted(self) -> Wanted:
        return Wanted(None)

    def parse(self, given: Given, device: torch.device) -> tuple[Conditions, list[str]]:
        given.require_one("made for prompts", ("--prompt", "--prompt-tokens"))
        if given.prompts:
            unconditionals = self._unconditionals(given.negative_prompts, len(given.prompts))
            return padded(
                [self.token_ids(prompt) for prompt in given.prompts], self.prefix, unconditionals
            ), given.prompts
        given.refuse_negative("the file of --prompt-tokens says by uncond what images must not show")
        conditions = self._from_file(Path(str(given.prompt_tokens)))
        return conditions, [f"prompt {k}" for k in range(len(conditions))]

    def check_ready(self) -> None:
        self._tokenizer()

    def read(self, values: list[Any], features: list[Path], where: Path) -> Prompts:
        """Captions of more than ``train_length`` tokens are cut at their end."""
        tokens = np.empty(len(values), dtype=object)
        for row, text in enumerate(values):
            tokens[row] = self.fitting_ids(text)
        return Prompts(np.array(values, dtype=object), tokens, self.prefix, self._unconditionals())

    def token_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt in its template, with those before and after it. Raises FlasharError for what is no
        Unicode text, or too much of it.
        """
        if len(prompt) > MOST_CHARACTERS:
            raise FlasharError(f"a prompt has {len(prompt)} characters; expected at most {MOST_CHARACTERS}; shorten it")
        if not is_unicode(prompt):
            raise FlasharError(f"the prompt {shown(prompt)} is no Unicode text; type it in UTF-8")
        return self._ids(self._on_grid(self.prefix.template).replace("{prompt}", prompt))

    def fitting_ids(self, caption: str) -> list[int]:
        """The ids of a caption of training data, cut at its end to ``train_length`` tokens. Raises FlasharError for a
        template that is longer.
        """
        prompt = caption[:MOST_CHARACTERS]
        most = self.prefix.train_length or self.prefix.max_length
        ids = self.token_ids(prompt)
        if len(ids) <= most:
            return ids
        end = bisect_right(range(len(prompt)), most, key=lambda count: len(self.token_ids(prompt[:count]))) - 1
        if end < 0:
            raise FlasharError(f"this model's prompts hold {most} tokens, too few for its template; mend its config")
        return self.token_ids(prompt[:end])

    def _on_grid(self, template: str) -> str:
        """A template with rows and columns filled in, before the prompt, which may hold the same words."""
        return template.replace("{height}", str(self.grid.height)).replace("{width}", str(self.grid.width))

    def _ids(self, text: str) -> list[int]:
        return [*self.prefix.begin, *self._tokenizer().encode(text), *self.prefix.end]

    def _unconditionals(self, negative: Sequence[str] | None = None, count: int = 1) -> list[list[int]] | None:
        """The unconditional prompts of ``count`` prompts, one for all or one for each: negative prompts in the template
        of prompts, else that of the prefix; None: made of the prompts by their rule.
        """
        if negative:
            if len(negative) not in (1, count):
                raise FlasharError(
                    f"got {len(negative)} negative prompts for {count} prompts; expected one, or as many"
                )
            return [self.token_ids(prompt) for prompt in negative]
        template = self.prefix.uncond_template
        return None if template is None else [self._ids(self._on_grid(template))]

    def _from_file(self, path: Path) -> Conditions:
        """The prompts of a file of ``--prompt-tokens``. Raises FlasharError for other content, and for ids that the
        model does not know.
        """
        where = f"--prompt-tokens {path}"
        form = 'of the form {"cond": [[ids]], "uncond": [[ids]]}'
        given = validated(read_json(path, where), PromptTokens, where, form)
        if given.uncond is not None and len(given.uncond) not in (1, len(given.cond)):
            raise FlasharError(
                f"{where} has {len(given.cond)} rows in cond and {len(given.uncond)} in uncond; "
                "expected as many, or one for all"
            )
        highest, size = max(max(row) for row in [*given.cond, *(given.uncond or [])]), self.prefix.vocab_size
        if highest >= size:
            raise FlasharError(f"{where} has the id {highest}; this model's text tokens are 0..{size - 1}")
        if given.uncond is None and self.prefix.uncond_template is not None and self.text_tokenizer is None:
            raise FlasharError(
                f"{where} has no uncond, and this checkpoint has no text tokenizer to make it; "
                'add "uncond": [[ids]], one row for all prompts'
            )
        return padded(given.cond, self.prefix, given.uncond or self._unconditionals())

    def _tokenizer(self) -> TextTokenizer:
        if self.text_tokenizer is None:
            raise FlasharError(
                "this checkpoint has no text tokenizer to read prompts with; generate takes their ids by "
                "--prompt-tokens FILE, or convert the model again with --text-tokenizer DIR"
            )
        return self.text_tokenizer


def padded(
    prompts: Sequence[list[int]],
    prefix: TextPrefix,
    unconditionals: Sequence[list[int]] | None = None,
    length: int = 1,
) -> Conditions:
    """The conditions of these prompts, left-padded to the longest of all or to ``length``, if that is more, with
    ``unconditionals``: one for all or one for each; None: made by the rule of the prefix. Raises FlasharError for more
    tokens than the model takes, and none.
    """
    lengths = [len(row) for row in (*prompts, *(unconditionals or []))] or [1]
    longest = max(*lengths, length)
    for each in (longest, min(lengths)):
        if not 1 <= each <= prefix.max_length:
            raise FlasharError(f"a prompt has {each} tokens; this model takes 1 to {prefix.max_length}; shorten it")
    require_memory(f"{len(prompts)} prompts of up to {longest} tokens", len(prompts) * longest * TOKEN_BYTES)
    ids_BP, mask_BP = left_padded(list(prompts), prefix.pad_id, longest)
    uncond_ids_BP, uncond_mask_BP = unconditional(ids_BP, prefix), mask_BP
    if unconditionals is not None:
        rows = unconditionals if len(unconditionals) == len(prompts) else [*unconditionals] * len(prompts)
        uncond_ids_BP, uncond_mask_BP = left_padded(list(rows), prefix.pad_id, longest)
    return Conditions(ids=ids_BP, mask=mask_BP, uncond_ids=uncond_ids_BP, uncond_mask=uncond_mask_BP)
