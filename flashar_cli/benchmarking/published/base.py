"""What tells one published sampler from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flashar_cli.config import ModelConfig


def no_obstacle(config: ModelConfig) -> str | None:
    """Every model of the family runs."""
    return None


@dataclass(frozen=True)
class Publication:
    """A sampler as it was published, for the models of one family.

    ``decoder`` is ours that decodes in the same order: forwards, floor and greedy tokens of both are the same.
    ``folder`` is where the repository keeps the code. ``branch_setting`` is the field of upstream's ModelArgs that
    counts the blocks of the vertical branch; None where upstream's model has none, and ours is run without.
    ``obstacle(config)`` says what keeps a model of the family from it, or nothing.
    """

    family: str
    repository: str
    decoder: Literal["raster", "flashar"]
    folder: str = "."
    branch_setting: str | None = None
    obstacle: Callable[[ModelConfig], str | None] = no_obstacle

    @property
    def clone(self) -> str:
        """For people: what ``--upstream`` expects."""
        return f"a clone of github.com/{self.repository}"
