"""Facts of a published image tokenizer, read from the names and shapes of its state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashar_cli.errors import FlasharError
from flashar_cli.files.lazy import Lazy
from flashar_cli.files.tensors import describe_problems
from flashar_cli.tokenizers.layers import NORM_GROUPS


@dataclass(frozen=True)
class StateShapes:
    """``shapes`` by upstream's names. Messages say that the state dict is none of ``title``."""

    title: str
    shapes: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, title: str, state: Mapping[str, Lazy]) -> StateShapes:
        return cls(title, {name: tuple(tensor.shape) for name, tensor in state.items()})

    def require(self, telling: Mapping[str, int]) -> None:
        """Raises FlasharError unless there are these tensors with so many axes each."""
        problems = [f"missing {name}" for name in telling if name not in self.shapes]
        for name in telling.keys() & self.shapes.keys():
            if len(self.shapes[name]) != telling[name] or 0 in self.shapes[name]:
                problems.append(f"{name} is {list(self.shapes[name])}, expected {telling[name]} axes")
        if problems:
            found = ", ".join([name for name in self.shapes if name not in telling][:8])
            raise self.foreign(*sorted(problems), f"found {found or 'no others'}")

    def channels(self, name: str) -> int:
        """The rows of a tensor as a base width. Raises FlasharError where GroupNorm does not divide it."""
        channels = self.shapes[name][0]
        if channels % NORM_GROUPS:
            raise self.foreign(f"its width {channels} is not a multiple of {NORM_GROUPS}")
        return channels

    def multipliers(self, levels: str, first: str, channels: int) -> tuple[int, ...]:
        """How many times ``channels`` the levels ``levels``0, ``levels``1, .. are wide, by ``first``, the weight of
        their first convolution. Raises FlasharError where that is no whole number, and for a gap between levels.
        """
        names = [f"{levels}{level}.{first}" for level in range(self.count(levels))]
        problems = [f"missing {name}" for name in names if name not in self.shapes]
        for name in self.shapes.keys() & names:
            if not self.shapes[name] or not self.shapes[name][0] or self.shapes[name][0] % channels:
                problems.append(f"{name} is {list(self.shapes[name])}, its width not a multiple of {channels}")
        if problems:
            raise self.foreign(*sorted(problems))
        return tuple(self.shapes[name][0] // channels for name in names)

    def count(self, prefix: str) -> int:
        """How many numbers from 0 on follow ``prefix`` in the names. Raises FlasharError for a gap between them."""
        found = {name.removeprefix(prefix).partition(".")[0] for name in self.shapes if name.startswith(prefix)}
        absent = [number for number in map(str, range(len(found))) if number not in found]
        if absent:
            raise self.foreign(f"{len(found)} parts are {prefix}*, none {prefix}{absent[0]}")
        return len(found)

    def foreign(self, *problems: str) -> FlasharError:
        return FlasharError(f"not {self.title}: {describe_problems(list(problems))}")
