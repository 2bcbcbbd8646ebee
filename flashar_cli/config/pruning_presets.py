"""Settings of FastVAR by name, and where ``--fastvar`` finds others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashar_cli.config.base import validated
from flashar_cli.config.pruning import Pruning
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import read_toml


def last_two(num_layers: int, num_scales: int) -> Pruning:
    """Ours, after the released setting: 40 % of the tokens of the last scale but one and 50 % of those of the last are
    dropped, in the same share of the layers.
    """
    last = num_scales - 1
    return Pruning(ratios=((last - 1, 0.4), (last, 0.5)), **pruned_layers(num_layers))


def pruned_layers(num_layers: int) -> dict[str, int]:
    """The same share of a model's layers as the released setting has of 32: 3 to 27."""
    return {"first_layer": round(num_layers * 3 / 32), "last_layer": num_layers - 1 - round(num_layers * 4 / 32)}


PRUNING_PRESETS: dict[str, Pruning] = {
    # csguoh/FastVAR Infinity/infinity/models/fastvar_utils.py and infinity.py, by scale instead of width.
    "infinity-released": Pruning(
        ratios=((9, 0.4), (10, 0.5)), first_layer=3, last_layer=27, cached_scale=8, num_scales=11
    ),
    **{f"var-d{depth}": last_two(depth, 10) for depth in (16, 20, 24, 30, 36)},
}


def choose_pruning(own: Pruning | None, name: str | None, changes: Mapping[str, Any]) -> Pruning | None:
    """What ``--fastvar`` names, or else a model's ``own`` settings, with some replaced; None where nothing is asked
    for. Raises FlasharError.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if name is None and not given:
        return None
    base = (own or Pruning()) if name is None else read_pruning(name)
    if "num_scales" in given and "ratios" not in given:
        given["ratios"] = tuple(pair for pair in base.ratios if pair[0] < given["num_scales"])
    return validated({**base.model_dump(), **given}, Pruning, "what is asked of FastVAR", "possible")


def read_pruning(text: str) -> Pruning:
    """The preset of this name, or the settings of a TOML file. Raises FlasharError."""
    if text in PRUNING_PRESETS:
        return PRUNING_PRESETS[text]
    if not text.endswith(".toml"):
        raise FlasharError(f"--fastvar is {text}; expected a file FILE.toml, or one of {', '.join(PRUNING_PRESETS)}")
    return validated(read_toml(Path(text)), Pruning, text, "settings of FastVAR")
