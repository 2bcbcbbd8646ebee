"""What the vertical branch and its fusion gate are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from flashar_cli.config.base import Config
from flashar_cli.inputs import bounds


@dataclass(frozen=True)
class GateFacts:
    """One kind of fusion gate. An MLP gate ``reads`` the "hidden" states or the "logits" of both heads; other gates
    read nothing and have ``weights`` weights.
    """

    reads: str | None = None
    weights: int = 0

    def inner_dim(self, dim: int, vocab_size: int) -> int | None:
        """Default inner width of the MLP; None for gates without one."""
        return {"hidden": max(64, dim // 8), "logits": max(32, vocab_size // 512), None: None}[self.reads]

    def num_weights(self, dim: int, vocab_size: int, branch: BranchConfig) -> int:
        """Weights of the gate of this branch."""
        if self.reads is None or branch.gate_dim is None:
            return self.weights
        corner = dim + 1 if self.reads == "hidden" and not branch.sees_prefix else 0
        return (2 * (dim if self.reads == "hidden" else vocab_size) + 1) * branch.gate_dim + 1 + corner


# Every kind that a config.json may name; models/gate.py has the module of each.
GATES = {
    "hidden": GateFacts(reads="hidden"),
    "logits": GateFacts(reads="logits"),
    "scalar": GateFacts(weights=1),
    "mean": GateFacts(),
}


def _known_gate(name: str) -> str:
    if name not in GATES:
        raise ValueError(f"expected one of {', '.join(GATES)}")
    return name


GateKind = Annotated[str, AfterValidator(_known_gate)]


class BranchConfig(Config):
    """The vertical branch and its fusion gate."""

    layer: Annotated[int, bounds.LAYER] = Field(
        description="m: the branch reads the hidden state before backbone block m; m = L: after the last"
    )
    depth: Annotated[int, bounds.LAYERS] = Field(1, description="d_v: transformer blocks of the branch")
    sees_prefix: bool = Field(
        True, description="false: its blocks run on image tokens alone; cell (0, 0) has the raw input of its head"
    )
    gate: GateKind = "hidden"
    gate_dim: Annotated[int, bounds.WIDTH] | None = Field(
        None, description="inner width of the gate's MLP; null for gates without one"
    )

    @model_validator(mode="after")
    def _gate_dim_where_needed(self) -> BranchConfig:
        if (GATES[self.gate].reads is not None) != (self.gate_dim is not None):
            raise ValueError(f"gate '{self.gate}' with gate_dim {self.gate_dim}: only MLP gates have a gate_dim")
        return self


def default_gate_dim(gate: str, dim: int, vocab_size: int) -> int | None:
    """Inner width of a gate's MLP: max(64, D // 8) for ``hidden``, max(32, V // 512) for ``logits``."""
    return GATES[gate].inner_dim(dim, vocab_size)
