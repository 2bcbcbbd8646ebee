"""Which of several processes this one is, as `torchrun` tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass


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
    """From the environment variables RANK, WORLD_SIZE and LOCAL_RANK; one process without them."""
    rank = int(os.environ.get("RANK", 0))
    return World(rank, int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", rank)))
