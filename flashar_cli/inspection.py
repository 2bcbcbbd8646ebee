"""What `flashar inspect` tells about a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashar_cli import checkpoint
from flashar_cli.config import read_config
from flashar_cli.listing import summary
from flashar_cli.models.sizes import model_weights


def inspect(directory: Path) -> dict[str, Any]:
    """Everything about a checkpoint, with ``problems``: a list, empty where it is whole."""
    config = read_config(directory)
    parameters = model_weights(config)
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
