"""Which of several processes this one is, as `torchrun` tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import decimal
from flashar_cli.inputs.text import shown


@dataclass(frozen=True)
class World:
    """``rank`` 0 .. size - 1 among all processes; ``local_rank`` among those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes what belongs to all."""
        return self.rank == 0


def current_world() -> World:
    """By RANK, WORLD_SIZE and LOCAL_RANK in the environment; one process without them. Raises FlasharError."""
    rank, size = _variable("RANK", 0), _variable("WORLD_SIZE", 1)
    world = World(rank, size, _variable("LOCAL_RANK", rank))
    if not 0 <= rank < size or not 0 <= world.local_rank <= rank:
        raise FlasharError(
            f"RANK is {rank}, LOCAL_RANK {world.local_rank} and WORLD_SIZE {size} in the environment; "
            "expected LOCAL_RANK <= RANK < WORLD_SIZE, as torchrun sets them; unset all three for one process"
        )
    return world


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    number = decimal(text)
    if number is None:
        raise FlasharError(f"the environment variable {name} is {shown(text)}; expected a whole number; unset it")
    return number
