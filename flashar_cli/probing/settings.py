"""How probes are trained. No torch here, so that the command line can show the defaults."""

from __future__ import annotations

from dataclasses import dataclass

from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.inputs.bounds import number_range
from flashar_cli.inputs.text import shown

DIRECTIONS = ("right", "lower")
HEADS = ("full", "low-rank", "shared")
# From so many tokens on a matrix D x V for each probe is too much, and the model's own head serves all.
WIDE_VOCABULARY = 65536


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are trained. ``head``: ``full`` is Linear(D -> V), ``low-rank`` Linear(D -> rank -> V), ``shared``
    Linear(D -> D) before the backbone's frozen output head.
    """

    layers: tuple[int, ...]
    mask: str = "raster"
    head: str = "full"
    rank: int = 64
    batch_size: int = 16
    lr: float = 3e-3
    branch_depth: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, got, allowed in (("mask", self.mask, ("raster", "diagonal")), ("head", self.head, HEADS)):
            if got not in allowed:
                raise FlasharError(f"--{name} is {got}; expected one of {', '.join(allowed)}")
        bounds.WIDTH.check("--rank", self.rank)
        bounds.LEARNING_RATE.check("--lr", self.lr)

    @property
    def num_probes(self) -> int:
        """One for each neighbour on each layer."""
        return len(DIRECTIONS) * len(self.layers)


def default_head(vocab_size: int) -> str:
    """The kind of probe for a model of so many tokens."""
    return "shared" if vocab_size >= WIDE_VOCABULARY else "full"


def parse_layers(text: str | None, num_layers: int) -> tuple[int, ...]:
    """``'0,4-6,12'``; None: all indices 0..L. Raises FlasharError for an index beyond L."""
    if text is None:
        return tuple(range(num_layers + 1))
    layers: set[int] = set()
    for part in text.split(","):
        ends = number_range(part)
        if ends is None or not ends[0] <= ends[1] <= num_layers:
            raise FlasharError(f"--layers: {shown(part)} is not an index or range within 0-{num_layers}")
        layers.update(range(ends[0], ends[1] + 1))
    return tuple(sorted(layers))
