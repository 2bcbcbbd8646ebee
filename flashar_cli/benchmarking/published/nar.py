"""NAR's sampler: one anti-diagonal a forward, as our flashar decoder, with the mean of both heads."""

from __future__ import annotations

from flashar_cli.benchmarking.published.base import Publication
from flashar_cli.config import ModelConfig


def obstacle(config: ModelConfig) -> str | None:
    """Upstream's branch follows the last block and both heads count the same; ours may differ."""
    branch, num_layers = config.branch, config.backbone.num_layers
    if branch is not None and branch.gate == "mean" and branch.layer == num_layers:
        return None
    got = "none" if branch is None else f"gate {branch.gate} at layer {branch.layer}"
    return f"a branch with gate mean at layer {num_layers}, this model's is {got}"


NAR = Publication(
    family="nar",
    repository="ThisisBillhe/NAR",
    decoder="flashar",
    folder="NAR-images",
    branch_setting="medusa_attention_num",
    obstacle=obstacle,
)
