"""Levels of optimisation: their names, what each is for, and what makes it. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.decoding.forwards import Forwards


@dataclass(frozen=True)
class Level:
    """One level. ``parts`` makes what stands in for a model's own forwards. ``obstacle`` says why the level cannot run
    this model here, None where no reason is known. ``device`` is the only kind of device it is for, None: any.
    ``graphed``: on CUDA the steps are captured as graphs. ``compiled``: the parts go through ``torch.compile``.
    """

    name: str
    help: str
    parts: Callable[[Any], Forwards]
    obstacle: Callable[[Any], str | None] = lambda model: None
    device: str | None = None
    graphed: bool = False
    compiled: bool = False


def _late(module: str, function: str) -> Callable[[Any], Any]:
    """A function of this folder, imported when called: its module imports torch, which `flashar --help` must not."""
    return lambda model: getattr(import_module(f"flashar_cli.decoding.{module}"), function)(model)


# From the slowest to the fastest on a GPU, as far as is known.
LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("eager", "as PyTorch runs it", _late("forwards", "plain")),
        Level(
            "packed",
            "a second copy of the weights for a CPU's matrix kernels",
            _late("forwards", "packed_linears"),
            _late("forwards", "packing_obstacle"),
            device="cpu",
        ),
        Level(
            "flex",
            "compile, with FlexAttention",
            _late("compiled", "parts_with_flex"),
            _late("compiled", "flex_obstacle"),
            device="cuda",
            graphed=True,
            compiled=True,
        ),
        Level(
            "graph",
            "CUDA graphs",
            _late("forwards", "joined"),
            _late("graphs", "graph_obstacle"),
            device="cuda",
            graphed=True,
        ),
        Level(
            "compile",
            "compiled parts; on CUDA as graphs",
            _late("compiled", "compiled_parts"),
            graphed=True,
            compiled=True,
        ),
    )
}


def get_level(name: str) -> Level:
    """Raises FlasharError for a name that is no level's."""
    if name not in LEVELS:
        raise FlasharError(f"--optimisation is {name}; expected one of {', '.join(LEVELS)}")
    return LEVELS[name]
