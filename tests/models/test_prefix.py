"""What stands before the image tokens, row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashar_cli.config import CaptionPrefix, ClassPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import CaptionEmbedder, ClassEmbedder, Conditions


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
    embedded, valid = embedder(Conditions(labels=torch.tensor([5, 0, 3])), torch.tensor([False, True, False]))
    assert valid is None and torch.equal(embedded, table[[5, 6, 3]][:, None])


def test_padding_of_a_caption_is_zero_before_the_projection():
    embedder, conditions = captions()
    embedded, valid = embedder(conditions, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(valid, conditions.mask > 0)
    for row, padding in enumerate((0, 2, 3)):
        features = conditions.features[row].clone()
        features[:padding] = 0
        inner = F.gelu(features @ embedder.fc1.weight.T, approximate="tanh")
        torch.testing.assert_close(embedded[row], inner @ embedder.fc2.weight.T)


def test_an_unconditional_caption_has_its_embedding_everywhere_under_the_captions_mask():
    embedder, conditions = captions()
    embedded, valid = embedder(conditions, torch.tensor([False, True, False]))
    inner = F.gelu(embedder.uncond_embedding @ embedder.fc1.weight.T, approximate="tanh")
    torch.testing.assert_close(embedded[1], inner @ embedder.fc2.weight.T)
    assert torch.equal(valid, conditions.mask > 0)
    kept, _ = embedder(conditions, torch.zeros(3, dtype=torch.bool))
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
    for bad, words in (
        (Conditions(labels=torch.tensor([1])), "not labels"),
        (Conditions(features=conditions.features[:, 1:], mask=conditions.mask[:, 1:]), "do not fit"),
        (Conditions(features=conditions.features, mask=conditions.mask[:2]), "do not fit"),
        (Conditions(features=conditions.features, mask=conditions.mask.flip(1)), "left-padded"),
    ):
        with pytest.raises(FlasharError, match=words):
            embedder.check(bad)
    with pytest.raises(FlasharError, match="not captions"):
        ClassEmbedder(ClassPrefix(num_classes=6), 8).check(conditions)
