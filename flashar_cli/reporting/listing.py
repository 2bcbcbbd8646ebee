"""What `flashar ls` and `flashar inspect` tell about models. No torch here before a checkpoint is inspected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashar_cli.checkpoints import hub
from flashar_cli.config import ModelConfig, read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS


def list_models() -> list[dict[str, Any]]:
    """One record per model, from its config alone: ``name``, ``condition``, ``grid``, ``structure`` (how it predicts),
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
        "structure": config.structure,
        "parameters": config.num_weights,
        "place": place,
        "where": where,
    }


def inspect(directory: Path) -> dict[str, Any]:
    """Everything about a checkpoint; ``problems`` is a list, empty where the checkpoint is whole. ``adapter`` is None
    where no adapters are apart from the weights.
    """
    from flashar_cli.checkpoints import adapters, checkpoint
    from flashar_cli.decoding.decoders import decoders_of

    config = read_config(directory)
    parameters = config.num_weights
    problems = checkpoint.problems(directory)
    adapter = adapters.describe(directory) if config.adapter and not problems else None
    return {
        "path": str(directory),
        "summary": summary(config),
        "parameters": parameters,
        "num_layers": config.num_layers,
        "width": config.width,
        "num_heads": config.num_heads,
        "weights_bytes_float32": 4 * parameters,
        "weights_bytes_bfloat16": 2 * parameters,
        "kv_cache_bytes_per_image_bfloat16": 2 * config.cache_values,
        "forwards": {decoder.name: decoder.num_forwards(config, config.order_grid) for decoder in decoders_of(config)},
        "tokenizer": None if config.tokenizer is None else config.tokenizer.in_words,
        "sha256": checkpoint.weights_sha256(directory),
        "adapter": adapter,
        "config": json.loads(config.model_dump_json()),
        "problems": problems,
    }


def summary(config: ModelConfig) -> str:
    """A few words: family, condition, grid, and how it predicts."""
    return f"{config.family}, {config.prefix.noun}-conditional, {config.order_grid} tokens, {config.structure}"


def readable_count(count: int) -> str:
    """1990400 -> '2.0 M'."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
