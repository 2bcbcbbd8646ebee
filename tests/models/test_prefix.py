"""What stands before the image tokens, row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashar_cli.config import CaptionPrefix, ClassPrefix, TextPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions, build_prefix
from flashar_cli.models.prefix.by_class import ClassEmbedder
from flashar_cli.models.prefix.caption import CaptionEmbedder
from flashar_cli.models.prefix.text import TextEmbedder, left_padded, unconditional


def captions() -> tuple[CaptionEmbedder, Conditions]:
    """Three captions of 4, 2 and 1 tokens, left-padded to 4; what stands in the padding must not matter."""
    torch.manual_seed(0)
    embedder = CaptionEmbedder(CaptionPrefix(feature_dim=5, length=4), 8).requires_grad_(False)
    embedder.uncond_embedding.normal_()
    mask = (torch.arange(4) >= torch.tensor([[0], [2], [3]])).float()
    return embedder, Conditions(features=torch.randn(3, 4, 5), mask=mask)


def test_the_last_class_is_the_unconditional_one():
    embedder = ClassEmbedder(ClassPrefix(num_classes=6), 8)
    table = embedder.embedding.weight
    assert table.shape == (7, 8)
    given, drop = Conditions(labels=torch.tensor([5, 0, 3])), torch.tensor([False, True, False])
    embedded = embedder(given, drop)
    assert embedder.valid(given, drop) is None and torch.equal(embedded, table[[5, 6, 3]][:, None])


def test_padding_of_a_caption_is_zero_before_the_projection():
    embedder, conditions = captions()
    drop = torch.zeros(3, dtype=torch.bool)
    embedded = embedder(conditions, drop)
    assert torch.equal(embedder.valid(conditions, drop), conditions.tensors["mask"] > 0)
    for row, padding in enumerate((0, 2, 3)):
        features = conditions.tensors["features"][row].clone()
        features[:padding] = 0
        inner = F.gelu(features @ embedder.fc1.weight.T, approximate="tanh")
        torch.testing.assert_close(embedded[row], inner @ embedder.fc2.weight.T)


def test_an_unconditional_caption_has_its_embedding_everywhere_under_the_captions_mask():
    embedder, conditions = captions()
    drop = torch.tensor([False, True, False])
    embedded, valid = embedder(conditions, drop), embedder.valid(conditions, drop)
    inner = F.gelu(embedder.uncond_embedding @ embedder.fc1.weight.T, approximate="tanh")
    torch.testing.assert_close(embedded[1], inner @ embedder.fc2.weight.T)
    assert torch.equal(valid, conditions.tensors["mask"] > 0)
    kept = embedder(conditions, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(embedded[[0, 2]], kept[[0, 2]])


@pytest.mark.parametrize("labels", ([6], [-1], [0, 7]))
def test_labels_beyond_the_classes_are_refused(labels):
    embedder = ClassEmbedder(ClassPrefix(num_classes=6), 8)
    embedder.check(Conditions(labels=torch.tensor([0, 5])))
    with pytest.raises(FlasharError, match=r"is out of range; expected 0\.\.5"):
        embedder.check(Conditions(labels=torch.tensor(labels)))


def test_the_other_kind_and_other_shapes_are_refused():
    embedder, conditions = captions()
    embedder.check(conditions)
    features, mask = (conditions.tensors[name] for name in ("features", "mask"))
    for bad, words in (
        (Conditions(labels=torch.tensor([1])), "not labels"),
        (Conditions(features=features[:, 1:], mask=mask[:, 1:]), "do not fit"),
        (Conditions(features=features, mask=mask[:2]), "do not fit"),
        (Conditions(features=features, mask=mask.flip(1)), "left-padded"),
    ):
        with pytest.raises(FlasharError, match=words):
            embedder.check(bad)
    with pytest.raises(FlasharError, match="not captions"):
        ClassEmbedder(ClassPrefix(num_classes=6), 8).check(conditions)


TEXT = TextPrefix(vocab_size=20, begin=(1,), end=(6,), pad_id=0, kept=(1, 6), max_length=8)


def prompts() -> tuple[TextEmbedder, Conditions]:
    """Prompts of 5 and 3 tokens."""
    torch.manual_seed(0)
    ids, mask = left_padded([[1, 7, 8, 9, 6], [1, 11, 6]], TEXT.pad_id)
    conditions = Conditions(ids=ids, mask=mask, uncond_ids=unconditional(ids, TEXT), uncond_mask=mask)
    return TextEmbedder(TEXT, 4).requires_grad_(False), conditions


def test_prompts_are_padded_on_the_left_and_keep_what_is_kept_without_a_condition():
    embedder, conditions = prompts()
    assert conditions.tensors["ids"].tolist() == [[1, 7, 8, 9, 6], [0, 0, 1, 11, 6]]
    assert conditions.tensors["mask"].tolist() == [[True] * 5, [False, False, True, True, True]]
    assert conditions.tensors["uncond_ids"].tolist() == [[1, 0, 0, 0, 6], [0, 0, 1, 0, 6]]
    drop = torch.tensor([False, True])
    embedded, valid = embedder(conditions, drop), embedder.valid(conditions, drop)
    table = embedder.embedding.weight
    assert torch.equal(embedded, table[torch.tensor([[1, 7, 8, 9, 6], [0, 0, 1, 0, 6]])])
    assert torch.equal(valid, conditions.tensors["mask"]) and embedder.length(conditions) == 5


def test_an_unconditional_prompt_may_have_a_mask_of_its_own():
    embedder, conditions = prompts()
    other = torch.tensor([[False] * 4 + [True]] * 2)
    given = Conditions(**{**conditions.tensors, "uncond_mask": other})
    valid = embedder.valid(given, torch.tensor([False, True]))
    assert torch.equal(valid, torch.stack([conditions.tensors["mask"][0], other[1]]))


def test_prompts_that_do_not_fit_are_refused():
    embedder, conditions = prompts()
    embedder.check(conditions)
    tensors = conditions.tensors
    for change, words in (
        ({"ids": tensors["ids"] + 10}, r"text token 2\d is out of range; expected 0\.\.19"),
        ({"uncond_ids": tensors["ids"] - 1}, "out of range"),
        ({"mask": tensors["mask"].flip(1)}, "not left-padded"),
        ({"mask": tensors["mask"][:, 1:]}, r"expected \[B, P\]"),
        (
            {name: tensor.repeat(1, 2) for name, tensor in tensors.items()},
            "a prompt has 10 tokens; this model takes 1 to 8",
        ),
    ):
        with pytest.raises(FlasharError, match=words):
            embedder.check(Conditions(**{**tensors, **change}))
    with pytest.raises(FlasharError, match="made for prompts"):
        embedder.check(Conditions(labels=torch.tensor([1])))


@pytest.mark.parametrize("config", (ClassPrefix(num_classes=3), CaptionPrefix(feature_dim=5, length=4), TEXT))
def test_blank_and_example_conditions_fit_the_model(config):
    prefix = build_prefix(config, 8)
    example = prefix.example(5, seed=1)
    prefix.check(example)
    assert len(example) == 5 and prefix.length(example) <= config.longest
    blank = prefix.blank(5, prefix.length(example))
    assert {name: tensor.shape for name, tensor in blank.tensors.items()} == {
        name: tensor.shape for name, tensor in example.tensors.items()
    }
    again, other = prefix.example(5, seed=1), prefix.example(5, seed=2)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in example.tensors.items())
    same = all(torch.equal(other.tensors[name], tensor) for name, tensor in example.tensors.items())
    assert same == (config.kind == "class")
    with torch.no_grad():
        drop = torch.zeros(5, dtype=torch.bool)
        embedded, valid = prefix(blank, drop), prefix.valid(blank, drop)
    assert embedded.shape == (5, prefix.length(blank), 8) and (valid is not None) == prefix.masks_keys
    assert config.num_weights(8) == sum(parameter.numel() for parameter in prefix.parameters())
