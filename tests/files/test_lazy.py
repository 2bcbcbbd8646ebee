"""Tensors that are read when they are needed."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.files.lazy import Finite, Held, Made, Stacked
from flashar_cli.files.tensors import WEIGHT_DTYPES


@pytest.mark.parametrize("first", (0, 1, 3))
@pytest.mark.parametrize("last", (None, 4, 5))
def test_rows_are_those_of_a_list(first, last):
    tops, rows = torch.randn(4, 2), torch.randn(6, 2)
    listed = [*tops[1:3], *rows[2:6]]
    stacked = Stacked([(Held(tops), 1, 3), (Held(rows), 2, 6)])
    assert stacked.shape == (6, 2) and stacked.num_bytes == 48
    assert torch.equal(stacked.read(first, last), torch.stack(listed[first:last]))
    single = Stacked([(Held(rows), 1, 6)])
    assert single.shape == (5, 2)
    assert torch.equal(single.read(first, last), torch.stack([*rows[1:6]][first:last]))


def test_only_pieces_with_wanted_rows_are_read():
    def refuse():
        raise AssertionError("it was read")

    stacked = Stacked([(Held(torch.ones(2, 2)), 0, 2), (Made((3, 2), torch.float32, refuse), 0, 3)])
    assert torch.equal(stacked.read(0, 2), torch.ones(2, 2))
    with pytest.raises(AssertionError, match="it was read"):
        stacked.read(1, 3)


def test_a_stack_keeps_its_dtype():
    halves = Stacked([(Held(torch.ones(2, 2).half()), 0, 2), (Held(torch.ones(1, 2).half()), 0, 1)])
    assert halves.dtype == torch.float16 == halves.read().dtype and halves.num_bytes == 12


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
def test_one_value_that_is_not_finite_is_found(dtype, bad):
    largest = torch.finfo(dtype).max
    good = torch.tensor([[largest, 0, -largest]] * 50, dtype=dtype)
    assert torch.equal(Finite(Held(good), "it").read(), good)
    for place in (0, 77, 149):
        broken = good.clone()
        broken.view(-1)[place] = bad
        with pytest.raises(FlasharError, match="it has NaN or infinite values"):
            Finite(Held(broken), "it").read()
    assert Finite(Held(broken), "it").read(0, 49).shape == (49, 3)  # the bad one is in the last row


def test_a_number_without_axes():
    assert Finite(Held(torch.tensor(2.0)), "it").read().item() == 2.0
