"""A stage of training."""

from __future__ import annotations

from dataclasses import dataclass

from flashar_cli.recipe import StageSettings


@dataclass(frozen=True)
class Stage:
    """A stage of ``steps`` optimizer steps."""

    name: str
    steps: int
    settings: StageSettings
