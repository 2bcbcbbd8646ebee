"""Geometry of a token grid: steps, decoding orders, and where each cell is predicted from.

Outside the model every grid is in raster order ``[.., H, W]``; inside, the image part of a sequence follows an
:class:`Order`. :class:`Grid` is the only place that knows about rows and columns. No torch here: orders are plain
index lists, and the conversions only index and reshape, so they take NumPy arrays and torch tensors alike.

A grid of 3 rows and 4 columns in the diagonal order, H + W - 1 = 6 steps::

    cell = 4 * row + col    step = row + col     position in the sequence
      0   1   2   3           0 1 2 3              0  1  3  6
      4   5   6   7           1 2 3 4              2  4  7  9
      8   9  10  11           2 3 4 5              5  8 10 11

    position              0   1  2   3  4  5   6  7  8   9 10  11
    cell                  0 | 1  4 | 2  5  8 | 3  6  9 | 7 10 | 11
    horizontal source     P   0  -   1  2  -   3  4  5   7  8   10     the position of the cell at its left
    vertical source       P   -  0   -  1  2   -  3  4   6  7    9     the position of the cell above it

``P`` is the last prefix token, and ``-`` means that this head does not predict the cell. A cell sees the prefix and all
cells of its own step and of those before it, the diagonal mask. With one prefix token (x: may attend)::

    P  x . . . . . . . . . . . .
    0  x x . . . . . . . . . . .    step 0
    1  x x x x . . . . . . . . .    step 1
    2  x x x x . . . . . . . . .
    3  x x x x x x x . . . . . .    step 2
    4  x x x x x x x . . . . . .
    5  x x x x x x x . . . . . .
    6  x x x x x x x x x x . . .    step 3, and so on

Some models expect an end-of-line token after every row but the last in raster order. It is known beforehand, so it is
fed in one forward with the last token of its row; the horizontal head predicts the next row from it. It has a slot in
the sequence and no cell::

    slot    0 1 2 3   4  5 6 7 8   9  10 11 12 13
    cell    0 1 2 3 end  4 5 6 7 end   8  9 10 11
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.bounds import SIDE, decimal
from flashar_cli.inputs.text import shown

NO_SOURCE = -1


@dataclass(frozen=True)
class Grid:
    """A token grid of ``height`` rows and ``width`` columns. A cell is the index ``row * width + col``."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height not in SIDE or self.width not in SIDE:
            raise FlasharError(
                f"a grid has {shown(self.height)} rows and {shown(self.width)} columns; expected of each {SIDE}"
            )

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Grid:
        """``'16x24'`` -> 16 rows, 24 columns; ``'16'`` -> 16x16. Raises FlasharError otherwise."""
        parts = text.lower().split("x")
        sides = [decimal(part) for part in parts[:3]]
        first, last = sides[0], sides[-1]
        if first is None or last is None or len(sides) > 2:
            raise FlasharError(f"'{text}' is not a grid; expected HEIGHTxWIDTH in tokens, e.g. 16x16")
        return cls(first, last)

    @property
    def num_cells(self) -> int:
        """N = H * W."""
        return self.height * self.width

    @property
    def num_diagonals(self) -> int:
        """T = H + W - 1, the forwards of diagonal decoding, that of the prefix included (paper: section 3)."""
        return self.height + self.width - 1

    def raster(self, line_ends: bool = False) -> Order:
        """One cell a step, row by row; the horizontal head predicts every cell from the token before it. With
        ``line_ends`` an end-of-line token follows every row but the last.
        """
        return _raster_order(self, line_ends)

    def diagonal(self) -> Order:
        """One anti-diagonal a step; the cells of a step are in order of their rows."""
        return _diagonal_order(self)

    def naive(self) -> Order:
        """The steps of ``diagonal``, every cell by the horizontal head: from the cell at its left, and in column 0 from
        the cell above.
        """
        return _naive_order(self)

    def zipped(self, window: int) -> Order:
        """Row by row, each row after the first of them beginning once the row above has ``window`` tokens; the
        horizontal head predicts every cell. Where a row begins before the one above has ended, a filler stands for the
        last token of that one. 2W + (H - 2) * window steps. Source: ZipAR (arXiv 2412.04062), as in ThisisBillhe/ZipAR
        LlamaGen-ZipAR/autoregressive/models/generate_zipar.py, but for cells that are not sampled yet: nothing attends
        to them here, and there they are keys and values of zeros.
        """
        return _zipped_order(self, min(window, self.width))


class Filler(NamedTuple):
    """A token that is fed with those of a ``step`` in the place of ``cell``, which is not sampled yet: a copy of the
    token of another cell.
    """

    step: int
    cell: int
    copied: int


@dataclass(frozen=True)
class Order:
    """An order of decoding: which cells each step holds, and which tokens predict each cell.

    Positions count image tokens in this order, 0 .. N-1. Slots count what is fed: image tokens and the end-of-line
    tokens that follow the steps in ``line_ends``; without any a slot is a position. ``horizontal_source[k]`` and
    ``vertical_source[k]`` say whose hidden state predicts the cell at position k: 0 is the last prefix token, ``1 + s``
    the token in slot s; ``NO_SOURCE`` means that this head does not predict it.

    With ``fillers`` a token attends to what stands before it in raster order alone, and to a filler until the token
    that it stands for is fed. A model is not trained in such an order.
    """

    name: str
    grid: Grid
    steps: tuple[tuple[int, ...], ...]
    horizontal_source: tuple[int, ...]
    vertical_source: tuple[int, ...]
    line_ends: frozenset[int] = frozenset()
    fillers: tuple[Filler, ...] = ()

    def __hash__(self) -> int:
        # Orders are keys of caches that every step looks up; hashing all fields would hash thousands of numbers.
        return hash((self.name, self.grid, len(self.line_ends)))

    @cached_property
    def cells(self) -> list[int]:
        """[N] raster cell at each position."""
        return [cell for step in self.steps for cell in step]

    @cached_property
    def positions(self) -> list[int]:
        """[N] position of each raster cell; the inverse of ``cells``."""
        inverse = [0] * len(self.cells)
        for position, cell in enumerate(self.cells):
            inverse[cell] = position
        return inverse

    @cached_property
    def step_starts(self) -> list[int]:
        """[num_steps + 1] first position of each step, then N."""
        starts = [0]
        for step in self.steps:
            starts.append(starts[-1] + len(step))
        return starts

    @cached_property
    def slots(self) -> list[int]:
        """[N] slot of the token at each position."""
        return [
            first + index
            for first, step in zip(self.slot_starts, self.steps, strict=False)
            for index in range(len(step))
        ]

    @cached_property
    def slot_starts(self) -> list[int]:
        """[num_steps + 1] first slot of each step, then S. An end-of-line token is in the step that it follows, fillers
        are behind the other tokens of theirs.
        """
        fillers = Counter(filler.step for filler in self.fillers)
        starts = [0]
        for index, step in enumerate(self.steps):
            starts.append(starts[-1] + len(step) + (index in self.line_ends) + fillers[index])
        return starts

    @cached_property
    def fed(self) -> list[list[int]]:
        """For each step the positions of the tokens that are fed with it, fillers behind the others."""
        found = [list(range(first, last)) for first, last in pairwise(self.step_starts)]
        for filler in self.fillers:
            found[filler.step].append(self.positions[filler.copied])
        return found

    def visible(self, step: int) -> list[list[bool]] | None:
        """Which of the slots up to its own each token that is fed with a step attends to; None: to all."""
        if not self.fillers:
            return None
        last, shown = self.slot_starts[step + 1], []
        for query in range(self.slot_starts[step], last):
            own = self.slot_cells[query]
            shown.append([self.slot_cells[key] <= own and self._lasts[key] >= step for key in range(last)])
        return shown

    @cached_property
    def slot_cells(self) -> list[int]:
        """[S] the cell in whose place each slot's token is, of an order without end-of-line tokens."""
        found = [list(step) for step in self.steps]
        for filler in self.fillers:
            found[filler.step].append(filler.cell)
        return [cell for step in found for cell in step]

    @cached_property
    def _lasts(self) -> list[int]:
        """[S] the last step at which each slot is attended to."""
        step_of = {cell: index for index, step in enumerate(self.steps) for cell in step}
        found = [[self.num_steps] * len(step) for step in self.steps]
        for filler in self.fillers:
            found[filler.step].append(step_of[filler.cell] - 1)
        return [last for step in found for last in step]

    @cached_property
    def ranks(self) -> list[int]:
        """[S] what a token attends to: to those whose rank is at most its own. Tokens of a step have one rank, an
        end-of-line token a higher one than the rest of its step.
        """
        found = []
        for index, step in enumerate(self.steps):
            found += [2 * index] * len(step) + [2 * index + 1] * (index in self.line_ends)
        return found

    @cached_property
    def places(self) -> list[int]:
        """[S] place of each slot's token in the text that the model was trained on: row by row, with end-of-line tokens
        where this order has them.
        """
        return list(range(self.num_slots)) if self.line_ends else self.slot_cells

    @property
    def num_slots(self) -> int:
        """S = N and the number of end-of-line tokens and fillers."""
        return self.slot_starts[-1]

    @cached_property
    def uses_branch(self) -> bool:
        """Whether the vertical head predicts any cell."""
        return any(source != NO_SOURCE for source in self.vertical_source)

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    def from_raster(self, grids: Any) -> Any:
        """[.., H, W] in raster order -> [.., N] in this order."""
        height, width = self.grid.height, self.grid.width
        if tuple(grids.shape[-2:]) != (height, width):
            raise FlasharError(f"token grid has shape {tuple(grids.shape)}; expected [.., {height}, {width}]")
        return grids.reshape(*grids.shape[:-2], -1)[..., self.cells]

    def to_raster(self, sequence: Any, trailing: int = 0) -> Any:
        """[.., N, *rest] in this order -> [.., H, W, *rest]; ``trailing`` is the number of axes in ``rest``."""
        rest = tuple(sequence.shape[sequence.ndim - trailing :])
        lead = tuple(sequence.shape[: sequence.ndim - trailing - 1])
        index = (..., self.positions, *[slice(None)] * trailing)
        return sequence[index].reshape(*lead, self.grid.height, self.grid.width, *rest)


@lru_cache(maxsize=64)
def _raster_order(grid: Grid, line_ends: bool) -> Order:
    num_cells, width = grid.num_cells, grid.width
    steps = tuple((cell,) for cell in range(num_cells))
    ends = frozenset(range(width - 1, num_cells - 1, width)) if line_ends else frozenset()
    previous = tuple(cell + (cell // width if line_ends else 0) for cell in range(num_cells))
    return Order("raster", grid, steps, previous, (NO_SOURCE,) * num_cells, ends)


@lru_cache(maxsize=64)
def _diagonal_order(grid: Grid) -> Order:
    height, width = grid.height, grid.width
    steps = tuple(
        tuple(row * width + (step - row) for row in range(max(0, step - width + 1), min(height, step + 1)))
        for step in range(grid.num_diagonals)
    )
    position_of = {cell: position for position, cell in enumerate(cell for step in steps for cell in step)}
    horizontal, vertical = [], []
    for cell in position_of:
        row, col = divmod(cell, width)
        corner = row == 0 and col == 0
        left = 1 + position_of[cell - 1] if col > 0 else NO_SOURCE
        above = 1 + position_of[cell - width] if row > 0 else NO_SOURCE
        horizontal.append(0 if corner else left)
        vertical.append(0 if corner else above)
    return Order("diagonal", grid, steps, tuple(horizontal), tuple(vertical))


@lru_cache(maxsize=64)
def _naive_order(grid: Grid) -> Order:
    diagonal = grid.diagonal()
    sources = zip(diagonal.horizontal_source, diagonal.vertical_source, strict=True)
    left_or_above = tuple(above if left == NO_SOURCE else left for left, above in sources)
    return Order("naive", grid, diagonal.steps, left_or_above, (NO_SOURCE,) * grid.num_cells)


@lru_cache(maxsize=64)
def _zipped_order(grid: Grid, window: int) -> Order:
    height, width = grid.height, grid.width
    first = [0, *(width + row * window for row in range(height - 1))]  # steps in which the rows begin
    num_steps = first[-1] + width
    begun = [[row for row in range(height) if first[row] <= step < first[row] + width] for step in range(num_steps)]
    steps = tuple(tuple(row * width + step - first[row] for row in rows) for step, rows in enumerate(begun))
    fillers = []
    for row in range(2, height):
        if first[row] < first[row - 1] + width:
            latest = min(width, first[row] - first[row - 2]) - 1  # of two rows above
            fillers.append(Filler(first[row] - 1, row * width - 1, (row - 2) * width + latest))
    order = Order(f"zipped-{window}", grid, steps, (), (NO_SOURCE,) * grid.num_cells, fillers=tuple(fillers))
    behind = {filler.cell: order.slot_starts[filler.step + 1] - 1 for filler in fillers}
    slots = dict(zip(order.cells, order.slots, strict=True)) | behind
    return replace(order, horizontal_source=tuple(0 if cell == 0 else 1 + slots[cell - 1] for cell in order.cells))
