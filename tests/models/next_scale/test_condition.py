"""What a next-scale model reads of conditions."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions
from tests.tiny_models import build_scale_model, infinity_like_config, var_like_config


def captions(lengths: list[int], seed: int = 0) -> Conditions:
    """Captions of these lengths, padded on the right; what stands in the padding must not matter."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(lengths), max(lengths), 16, generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    return Conditions(features=features, mask=mask)


def alone(conditions: Conditions, row: int) -> Conditions:
    """One caption without its padding."""
    length = int(conditions.tensors["mask"][row].sum())
    return Conditions(**{name: tensor[row : row + 1, :length] for name, tensor in conditions.tensors.items()})


def test_the_last_class_is_the_unconditional_one():
    model = build_scale_model(var_like_config())
    table = model.prefix.embedding.weight
    condition = model.prefix(Conditions(labels=torch.tensor([5, 0, 3])), torch.tensor([False, True, False]), False)
    assert torch.equal(condition.vector, table[[5, 10, 3]]) and condition.memory is None and condition.mask is None


def test_a_caption_in_a_batch_is_read_as_alone():
    encoder = build_scale_model(infinity_like_config()).prefix
    conditions, drop = captions([4, 6, 1]), torch.tensor([False, True, False])
    assert encoder.padded(conditions) and encoder.length(conditions) == 6
    together = encoder(conditions, drop, True)
    for row, length in enumerate((4, 6, 1)):
        single = alone(conditions, row)
        assert not encoder.padded(single)
        expected = encoder(single, drop[row : row + 1], False)
        torch.testing.assert_close(together.vector[row], expected.vector[0])
        torch.testing.assert_close(together.memory[row, :length], expected.memory[0])
        assert expected.mask is None
        assert together.mask[row, 0, 0].tolist() == [0.0] * length + [-torch.inf] * (6 - length)


def test_no_caption_is_as_long_as_the_caption_it_stands_for():
    encoder = build_scale_model(infinity_like_config()).prefix
    conditions, drop = captions([4, 2]), torch.tensor([True, True])
    for row, length in enumerate((4, 2)):
        features = encoder.uncond_embedding[:length][None]
        learned = Conditions(features=features, mask=torch.ones(1, length))
        expected = encoder(learned, torch.tensor([False]), False)
        found = encoder(conditions, drop, True)
        torch.testing.assert_close(found.vector[row], expected.vector[0])
        torch.testing.assert_close(found.memory[row, :length], expected.memory[0])


def test_conditions_to_fill_and_to_measure_with():
    for config, length in ((var_like_config(), 1), (infinity_like_config(), 4)):
        encoder = build_scale_model(config).prefix
        blank, example = encoder.blank(2, length), encoder.example(2, 0)
        encoder.check(blank)
        encoder.check(example)
        assert encoder.length(blank) == length and encoder.length(example) == config.prefix.longest
        assert not encoder.padded(blank) and not encoder.padded(example)


def test_what_is_no_caption_is_refused():
    encoder = build_scale_model(infinity_like_config()).prefix
    encoder.check(captions([4, 6, 1]))
    features, mask = (captions([4, 2]).tensors[name] for name in ("features", "mask"))
    for bad, words in (
        (Conditions(labels=torch.tensor([1])), "not labels"),
        (Conditions(features=features[..., 1:], mask=mask), "do not fit"),
        (Conditions(features=features, mask=mask[:, 1:]), "do not fit"),
        (captions([7, 2]), "1 <= P <= 6"),
        (Conditions(features=features, mask=mask.flip(1)), "not right-padded"),
        (Conditions(features=features, mask=torch.zeros(2, 4)), "one at least"),
    ):
        with pytest.raises(FlasharError, match=words):
            encoder.check(bad)
