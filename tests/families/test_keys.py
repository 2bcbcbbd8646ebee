"""Tables of names, from ours to upstream's and back."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import TextPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.families.keys import Joined, KeyTable, Rows, qkv_rows, text_rows, visual_rows
from flashar_cli.files.lazy import lazily
from tests.tiny_models import random_config


def to_ours(table: KeyTable, state, names, config) -> dict[str, torch.Tensor]:
    return {name: lazy.read() for name, lazy in table.to_ours(lazily(state), names, config).items()}


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
    assert to_ours(table, {theirs: tensor}, [ours], CONFIG) == {ours: tensor}
    for foreign in ("a.x.b", "a.7.b.c", "plainer", "b"):
        with pytest.raises(FlasharError, match=f"'{foreign}' has no name in the upstream layout of family llamagen"):
            table.to_upstream({foreign: tensor}, CONFIG)


def test_the_first_pair_that_fits_holds():
    table = KeyTable(("special", "a.b"), ("rest.*", "a.*"))
    assert table.to_upstream({"a.b": torch.ones(1), "a.c": torch.ones(1)}, CONFIG).keys() == {"special", "rest.c"}


def test_joined_tensors_come_apart_in_order():
    table = KeyTable((Joined(("q.{}", "k.{}", "v.{}"), qkv_rows), "wqkv.{}"))
    parts = {f"{name}.0": torch.randn(rows, 3) for name, rows in {"q": 64, "k": 32, "v": 32}.items()}
    ours = to_ours(table, parts, ["wqkv.0"], CONFIG)
    assert torch.equal(ours["wqkv.0"], torch.cat([*parts.values()]))
    back = table.to_upstream(ours, CONFIG)
    assert back.keys() == parts.keys() and all(torch.equal(back[name], parts[name]) for name in parts)


VOCABULARY = KeyTable(
    (Rows("embed.weight", text_rows), "prefix.embedding.weight"),
    (Rows("embed.weight", visual_rows), "backbone.embedding.weight"),
    (Rows("head.{}.weight", visual_rows), "heads.{}.weight"),
    ("norm", "norm"),
)
PROMPTED = CONFIG.model_copy(update={"prefix": TextPrefix(vocab_size=7)})  # 32 visual tokens


def test_rows_of_one_tensor_are_two_of_ours():
    table = torch.randn(39, 3)
    names = ["backbone.embedding.weight", "prefix.embedding.weight", "norm"]
    upstream = {"embed.weight": table, "norm": torch.tensor(2.0)}
    ours = to_ours(VOCABULARY, upstream, names, PROMPTED)
    assert torch.equal(ours["prefix.embedding.weight"], torch.stack([table[row] for row in range(7)]))
    assert torch.equal(ours["backbone.embedding.weight"], torch.stack([table[7 + row] for row in range(32)]))
    for order in (names, names[::-1]):
        back = VOCABULARY.to_upstream({name: ours[name] for name in order}, PROMPTED)
        assert back.keys() == upstream.keys() and all(torch.equal(back[name], upstream[name]) for name in back)


def test_rows_that_nothing_needs_are_known_by_their_number_alone():
    head = torch.randn(39, 3)
    ours = to_ours(VOCABULARY, {"head.4.weight": head}, ["heads.4.weight"], PROMPTED)
    assert torch.equal(ours["heads.4.weight"], head[7:])
    expected = VOCABULARY.to_upstream({name: tensor.to("meta") for name, tensor in ours.items()}, PROMPTED)
    assert {name: tensor.shape for name, tensor in expected.items()} == {"head.4.weight": head.shape}
    with pytest.raises(FlasharError, match=r"head\.4\.weight has 39 rows, of which a checkpoint keeps 7 to 39 alone"):
        VOCABULARY.to_upstream(ours, PROMPTED)
    with pytest.raises(FlasharError, match="keeps 0 to 7 alone"):
        VOCABULARY.to_upstream({"prefix.embedding.weight": torch.ones(7, 3)}, PROMPTED)


def test_what_becomes_one_tensor_has_one_dtype():
    halves = {"prefix.embedding.weight": torch.ones(7, 3).half(), "backbone.embedding.weight": torch.ones(32, 3)}
    with pytest.raises(FlasharError, match=r"embed\.weight.* dtype"):
        VOCABULARY.to_upstream(halves, PROMPTED)
