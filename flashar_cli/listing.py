"""What `flashar ls` tells about models, from their configs alone. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashar_cli import hub
from flashar_cli.config import ClassPrefix, ModelConfig, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.models.sizes import model_weights


def list_models() -> list[dict[str, Any]]:
    """One record per model name: ``name``, ``condition``, ``grid``, ``branch`` (None: raster only), ``parameters``,
    ``place`` (here, embedded, cache or Hub) and ``where`` (a path, or the Hub's file).

    Of a broken checkpoint there is ``problem`` instead of what it is.
    """
    return [_record(name, hub.local_path(name)) for name in (*hub.EMBEDDED, *PRESETS)]


def _record(name: str, directory: Path | None) -> dict[str, Any]:
    if directory is None:
        config, place, where = PRESETS[name].config(), "Hub", str(PRESETS[name].weights)
    else:
        place, where = hub.place_of(directory), str(directory)
        try:
            config = read_config(directory)
        except FlasharError as error:
            return {"name": name, "problem": str(error), "place": place, "where": where}
    return {
        "name": name,
        "condition": condition(config),
        "grid": str(config.order_grid),
        "branch": branch_in_words(config),
        "parameters": model_weights(config),
        "place": place,
        "where": where,
    }


def summary(config: ModelConfig) -> str:
    """A few words: family, condition, grid, branch."""
    branch = branch_in_words(config)
    words = f"{config.family}, {condition(config)}-conditional, {config.order_grid} tokens"
    return f"{words}, raster" if branch is None else f"{words}, branch {branch}"


def condition(config: ModelConfig) -> str:
    """What a picture is drawn for: a ``class`` or a ``caption``."""
    return "class" if isinstance(config.prefix, ClassPrefix) else "caption"


def branch_in_words(config: ModelConfig) -> str | None:
    """The block before which the branch starts, of how many, and its gate; None where there is no branch."""
    branch = config.branch
    return None if branch is None else f"{branch.layer}/{config.backbone.num_layers}, {branch.gate}"


def readable_count(count: int) -> str:
    """1990400 -> '2.0 M'."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
