"""Other ways to run a model's parts, in place only for as long as a decode runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

# A module, the name of an attribute, and what the module has in its place.
StandIn = tuple[nn.Module, str, Any]


class Forwards:
    """Forwards and weights that stand in for modules' own ones. Outside ``active`` the model is as it was."""

    def __init__(
        self,
        stand_ins: list[StandIn],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """All act inside ``around``."""
        self._stand_ins, self._around = stand_ins, around

    @contextmanager
    def active(self) -> Iterator[None]:
        """The stand-ins are used inside; hooks on the modules are called as ever."""
        own = [(module, name, module.__dict__[name]) for module, name, _ in self._stand_ins if name in module.__dict__]
        for module, name, value in self._stand_ins:
            module.__dict__[name] = value
        try:
            with self._around():
                yield
        finally:
            for module, name, _ in self._stand_ins:
                del module.__dict__[name]
            for module, name, value in own:
                module.__dict__[name] = value
