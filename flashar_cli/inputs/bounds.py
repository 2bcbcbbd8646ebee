"""Which numbers are accepted from outside: one range for every kind of number, for options, recipes and configs alike.

The limits lie far beyond what anybody uses and well inside int64 and float32, so a number that passes can be computed
with. Whether there is memory for it is for ``machine`` to say. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.text import shown

MOST_DIGITS = 18  # always an int64


@dataclass(frozen=True)
class Bounds:
    """Numbers of a ``kind`` from ``least`` to ``most``, both included. Where 0 is accepted although ``least`` is
    greater, ``zero`` says what it means. In an ``Annotated`` type it makes pydantic refuse other numbers.
    """

    kind: type[int] | type[float]
    least: float
    most: float
    zero: str | None = None

    def __contains__(self, value: float) -> bool:
        return (self.zero is not None and value == 0) or self.least <= value <= self.most  # NaN fails both

    def __str__(self) -> str:
        noun, form = ("a whole number", "") if self.kind is int else ("a number", "g")
        span = f"{noun} from {self.least:{form}} to {self.most:{form}}"
        return span if self.zero is None else f"{span}, or 0 ({self.zero})"

    def check(self, name: str, value: float) -> None:
        """Raises FlasharError for a number outside; ``name`` is what the user calls it."""
        if value not in self:
            raise FlasharError(f"{name} is {shown(value)}; expected {self}")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._validated, handler(source))

    def _validated(self, value: Any) -> Any:
        if value not in self:
            raise ValueError(f"expected {self}")
        return value


def whole(least: int, most: int, zero: str | None = None) -> Bounds:
    """Whole numbers."""
    return Bounds(int, least, most, zero)


def real(least: float, most: float, zero: str | None = None) -> Bounds:
    """Numbers that float32 can hold, as it can their reciprocals where 0 is not among them."""
    return Bounds(float, least, most, zero)


def decimal(text: str) -> int | None:
    """The whole number that a text of decimal digits means; None for other text. Raises FlasharError for more digits
    than any number here has.
    """
    digits = text.strip()
    if not digits.isascii() or not digits.isdecimal():
        return None
    if len(digits.lstrip("0")) > MOST_DIGITS:
        raise FlasharError(f"{shown(digits)} has more than {MOST_DIGITS} digits; expected a smaller number")
    return int(digits)


def number_range(text: str) -> tuple[int, int] | None:
    """``'4-9'`` -> (4, 9), ``'4'`` -> (4, 4); None for other text. Raises FlasharError as ``decimal`` does."""
    first, dash, last = text.partition("-")
    ends = decimal(first), decimal(last if dash else first)
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


# What a model is.
WIDTH = whole(1, 2**17)
LAYERS = whole(1, 1024)
LAYER = whole(0, 1024)
HEADS = whole(1, 4096)
VOCAB = whole(2, 2**22)
CLASSES = whole(1, 2**22)
LABEL = whole(-(10**MOST_DIGITS), 10**MOST_DIGITS)  # of data whose classes are counted later
PREFIX = whole(1, 2**15)
TOKEN_ID = whole(0, 2**22)
POSITIONS = whole(1, 2**24)
SIDE = whole(1, 1024)  # of a grid, in tokens
CHANNELS = whole(1, 2**14)
MULTIPLIER = whole(1, 64)
LEVELS = whole(1, 8)  # resolutions of an image tokenizer
LEVEL = whole(0, 7)
NUM_SCALES = whole(1, 64)  # maps of tokens of one image
SCALE_INDEX = whole(0, 63)
BITS = whole(1, 256)  # of a token
PATCH = whole(1, 8)
RES_BLOCKS = whole(1, 64)
NORM_EPS = real(1e-12, 1.0)
ROPE_BASE = real(1.0, 1e12)

# How tokens are sampled. Logits of a few hundred, guided and divided by the temperature, stay within float32.
CFG_SCALE = real(0.0, 1e3)
TEMPERATURE = real(1e-6, 1e6, zero="argmax")
TOP_K = whole(0, 2**22)
TOP_P = real(1e-6, 1.0)
MIN_P = real(1e-6, 1.0, zero="off")
SHARE = real(0.0, 1.0)

# How much is done, and by how many.
SEED = whole(0, 2**32 - 1)
IMAGES = whole(1, 2**31)
IMAGE_SIDE = whole(8, 8192)  # in pixels
SAMPLES = whole(1, 2**20)  # of one prompt
TWO_IMAGES = whole(2, 2**31)  # one to learn from, one to measure
BATCH = whole(1, 2**20)
WINDOW = whole(1, 1024)  # of a decoder, in tokens
STEPS = whole(1, 2**31)
STAGED_STEPS = whole(2, 2**31)
WARMUP = whole(0, 2**31)
REPEATS = whole(1, 10**6)
THREADS = whole(1, 1024)
PROCESSES = whole(1, 1024)
PIXELS = whole(1, 2**16)
CROP_RATIO = real(1.0, 4.0)

# How a model learns.
RANK = whole(1, 2**14, zero="off")  # of low-rank adapters
SCALE = real(1e-6, 1e6)
LEARNING_RATE = real(1e-12, 1e3)
WEIGHT = real(1e-12, 1e6, zero="off")
RATE = real(1e-12, 0.999999, zero="off")  # a share below 1
LOSS = real(0.0, 1e6)  # nats per token
SOFTNESS = real(1e-3, 1e3)  # temperature of a distillation
