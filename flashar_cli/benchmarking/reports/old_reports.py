"""Reports of layout 1: raster and flashar, both eager, on one grid."""

from __future__ import annotations

from typing import Any

ARMS = {"raster": "raster-eager", "flashar": "flashar-eager"}


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """The document in layout 2. What is malformed stays as it is, for validation to name."""
    model, settings, batches = (document.get(key) for key in ("model", "settings", "batches"))
    upgraded = {**document, "report_version": 2}
    if isinstance(settings, dict):
        kept = {key: value for key, value in settings.items() if key != "optimisation"}
        upgraded["settings"] = {**kept, "arms": list(ARMS.values())}
    if isinstance(batches, list):
        grid = model.get("grid") if isinstance(model, dict) else None
        upgraded["batches"] = [_batch(batch, grid) if isinstance(batch, dict) else batch for batch in batches]
    return upgraded


def _batch(batch: dict[str, Any], grid: object) -> dict[str, Any]:
    arms = [
        {"name": name, "decoder": decoder, "level": "eager", **batch[decoder]}
        for decoder, name in ARMS.items()
        if isinstance(batch.get(decoder), dict)
    ]
    floors = [floor for arm in arms if isinstance(floor := arm.get("floor_s"), int | float) and floor > 0]
    speedups = []
    if len(floors) == len(ARMS):
        speedups = [
            {
                "arm": ARMS["flashar"],
                "over": ARMS["raster"],
                "token_generation": batch.get("speedup"),
                "with_token_decode": batch.get("speedup_with_token_decode"),
                "floor": floors[0] / floors[1],
            }
        ]
    kept = {key: value for key, value in batch.items() if key not in ARMS}
    return {**kept, "grid": grid, "arms": arms, "speedups": speedups}
