"""Which numbers are taken from outside, against what float32 and int64 hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.inputs.bounds import Bounds, decimal, number_range
from tests.input.values import BEYOND_ALL_BOUNDS, DIGITS, FLOATS, INTEGERS, TEXT

ALL = {name: value for name, value in vars(bounds).items() if isinstance(value, Bounds)}


@pytest.mark.parametrize("name", ALL)
def test_both_ends_fit_the_machine(name: str) -> None:
    allowed = ALL[name]
    for end in (allowed.least, allowed.most):
        if allowed.kind is int:
            assert abs(int(end)) <= np.iinfo(np.int64).max and isinstance(end, int)
        else:
            single = np.float32(end)
            assert end == 0 or np.finfo(np.float32).tiny <= single <= np.finfo(np.float32).max
            assert end == 0 or np.isfinite(1 / single)
    if name != "LABEL":
        assert allowed.most < BEYOND_ALL_BOUNDS, "the hostile tests take this for too much of anything"


@given(st.sampled_from(sorted(ALL)), INTEGERS | FLOATS)
def test_a_number_is_taken_or_refused_in_a_short_line(name: str, value: float) -> None:
    allowed = ALL[name]
    inside = allowed.least <= value <= allowed.most or (allowed.zero is not None and value == 0)
    try:
        allowed.check("--it", value)
    except FlasharError as error:
        assert not inside and len(str(error)) < 250 and str(error).startswith("--it is ")
    else:
        assert inside


def test_bounds_are_part_of_a_type() -> None:
    from typing import Annotated

    class Model(BaseModel):
        size: Annotated[int, bounds.whole(1, 8)]
        heat: Annotated[float, bounds.real(1e-6, 2.0, zero="argmax")] | None = None

    assert Model(size=8, heat=0).heat == 0
    assert Model(size=1).heat is None
    for wrong in ({"size": 9}, {"size": 0}, {"size": 1, "heat": float("nan")}, {"size": 1, "heat": 1e-7}):
        with pytest.raises(ValidationError, match="expected a"):
            Model(**wrong)


def test_decimal() -> None:
    assert (decimal(" 007 "), decimal("0"), decimal("1" * 18)) == (7, 0, int("1" * 18))
    assert [decimal(text) for text in ("", "-1", "1.0", "１", "²", "0x1", "1_0")] == [None] * 7
    for text in (DIGITS, "1" * 19):
        with pytest.raises(FlasharError, match="more than 18 digits"):
            decimal(text)


def test_number_range() -> None:
    assert (number_range("4-9"), number_range(" 4 "), number_range("9-4")) == ((4, 9), (4, 4), (9, 4))
    assert number_range("4-") is None and number_range("-4") is None and number_range("a-b") is None


@given(TEXT)
def test_numbers_in_text_are_found_or_refused(text: str) -> None:
    try:
        found = number_range(text)
    except FlasharError:
        return
    assert found is None or max(found) < 10**18
