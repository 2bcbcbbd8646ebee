"""What `flashar ls` and `flashar inspect` tell about models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from flashar_cli import checkpoint, hub
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.models.flashar import FlasharModel


def list_models() -> list[dict[str, str]]:
    """One record per model name: ``name``, ``summary``, ``parameters`` (text), ``where``."""
    records = []
    for name in (*hub.EMBEDDED, *PRESETS):
        directory = hub.local_path(name)
        if directory is None:
            config, where = PRESETS[name].config(), f"Hub: {PRESETS[name].weights}"
        else:
            where = "embedded" if directory.is_relative_to(hub.ASSETS) else str(directory)
            try:
                config = checkpoint.read_config(directory)
            except FlasharError as error:
                records.append({"name": name, "summary": f"broken: {error}", "parameters": "-", "where": where})
                continue
        records.append(
            {
                "name": name,
                "summary": summary(config),
                "parameters": readable_count(count_parameters(config)),
                "where": where,
            }
        )
    return records


def summary(config: ModelConfig) -> str:
    """A few words: family, condition, grid, branch."""
    kind = "class" if isinstance(config.prefix, ClassPrefix) else "caption"
    branch = config.branch
    words = f"{config.family}, {kind}-conditional, {config.order_grid} tokens"
    if branch is None:
        return f"{words}, raster"
    return f"{words}, branch at {branch.layer}/{config.backbone.num_layers}, gate {branch.gate}"


def count_parameters(config: ModelConfig) -> int:
    """Weights of backbone, prefix and branch; the tokenizer's are not among them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in FlasharModel(config).parameters())


def readable_count(count: int) -> str:
    """1990400 -> '2.0 M'."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def inspect(directory: Path) -> dict[str, Any]:
    """Everything about a checkpoint, with ``problems``: a list, empty where it is whole."""
    config = checkpoint.read_config(directory)
    parameters = count_parameters(config)
    backbone, grid = config.backbone, config.order_grid
    branch_depth = config.branch.depth if config.branch else 0
    cache_values = 2 * (backbone.num_layers + branch_depth) * backbone.num_kv_heads * backbone.head_dim
    positions = config.prefix.length + grid.num_cells
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
        "config": json.loads(config.model_dump_json()),
        "problems": checkpoint.problems(directory),
    }
