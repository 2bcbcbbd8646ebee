"""What `flashar ls` and `flashar inspect` tell about models. No torch here before a checkpoint is inspected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashar_cli.checkpoints import hub
from flashar_cli.config import RasterConfig, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS


def list_models() -> list[dict[str, Any]]:
    """One record per model, from its config alone: ``name``, ``condition``, ``grid``, ``branch`` (None: raster only),
    ``parameters``, ``place`` (here, embedded, cache or Hub) and ``where`` (a path, or the Hub's file). A broken
    checkpoint has ``problem`` instead of its facts.
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
        "condition": config.prefix.noun,
        "grid": str(config.order_grid),
        "branch": branch_in_words(config),
        "parameters": config.num_weights,
        "place": place,
        "where": where,
    }


def inspect(directory: Path) -> dict[str, Any]:
    """Everything about a checkpoint; ``problems`` is a list, empty where the checkpoint is whole. ``adapter`` is None
    where no adapters are apart from the weights.
    """
    from flashar_cli.checkpoints import adapters, checkpoint

    config = read_config(directory)
    parameters = config.num_weights
    backbone, grid = config.backbone, config.order_grid
    cache_values = 2 * config.num_blocks * backbone.num_kv_heads * backbone.head_dim
    positions = config.prefix.longest + grid.num_cells
    problems = checkpoint.problems(directory)
    adapter = adapters.describe(directory) if config.adapter and not problems else None
    return {
        "path": str(directory),
        "summary": summary(config),
        "parameters": parameters,
        "weights_bytes_float32": 4 * parameters,
        "weights_bytes_bfloat16": 2 * parameters,
        "kv_cache_bytes_per_image_bfloat16": 2 * cache_values * positions,
        "forwards_raster": grid.num_cells,
        "forwards_flashar": grid.num_diagonals if config.branch else None,
        "sha256": checkpoint.weights_sha256(directory),
        "adapter": adapter,
        "config": json.loads(config.model_dump_json()),
        "problems": problems,
    }


def summary(config: RasterConfig) -> str:
    """A few words: family, condition, grid, branch."""
    branch = branch_in_words(config)
    words = f"{config.family}, {config.prefix.noun}-conditional, {config.order_grid} tokens"
    return f"{words}, raster" if branch is None else f"{words}, branch {branch}"


def branch_in_words(config: RasterConfig) -> str | None:
    """The block before which the branch starts, the number of blocks, and the gate; None where there is no branch."""
    branch = config.branch
    return None if branch is None else f"{branch.layer}/{config.backbone.num_layers}, {branch.gate}"


def readable_count(count: int) -> str:
    """1990400 -> '2.0 M'."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
