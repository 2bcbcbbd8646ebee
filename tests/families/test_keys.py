"""Tables of names, from ours to upstream's and back."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.families.keys import Joined, KeyTable, qkv_rows
from tests.tiny_models import random_config

CONFIG = random_config()  # two blocks, four query heads of 16 on two key and value heads


@pytest.mark.parametrize(
    ("ours", "theirs"),
    (
        ("a.7.b", "x.7"),
        ("a.7.c.0.d", "y.7.z.0.d"),
        ("branch.0.w", "layers.2.w"),
        ("branch.11.w.v", "layers.13.w.v"),
        ("plain", "simple"),
    ),
)
def test_numbers_and_ends_are_carried_over(ours, theirs):
    table = KeyTable(
        ("x.{}", "a.{}.b"), ("y.{}.z.{}.*", "a.{}.c.{}.*"), ("layers.{+}.*", "branch.{}.*"), ("simple", "plain")
    )
    tensor = torch.ones(2)
    assert table.to_upstream({ours: tensor}, CONFIG) == {theirs: tensor}
    assert table.to_ours({theirs: tensor}, [ours], CONFIG) == {ours: tensor}
    for foreign in ("a.x.b", "a.7.b.c", "plainer", "b"):
        with pytest.raises(FlasharError, match=f"'{foreign}' has no name in the upstream layout of family llamagen"):
            table.to_upstream({foreign: tensor}, CONFIG)


def test_the_first_pair_that_fits_holds():
    table = KeyTable(("special", "a.b"), ("rest.*", "a.*"))
    assert table.to_upstream({"a.b": torch.ones(1), "a.c": torch.ones(1)}, CONFIG).keys() == {"special", "rest.c"}


def test_joined_tensors_come_apart_in_order():
    table = KeyTable((Joined(("q.{}", "k.{}", "v.{}"), qkv_rows), "wqkv.{}"))
    parts = {f"{name}.0": torch.randn(rows, 3) for name, rows in {"q": 64, "k": 32, "v": 32}.items()}
    ours = table.to_ours(parts, ["wqkv.0"], CONFIG)
    assert torch.equal(ours["wqkv.0"], torch.cat([*parts.values()]))
    back = table.to_upstream(ours, CONFIG)
    assert back.keys() == parts.keys() and all(torch.equal(back[name], parts[name]) for name in parts)
