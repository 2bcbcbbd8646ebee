from __future__ import annotations

import numpy as np
import pytest
import torch

from flashar_cli.config import TextPrefix
from flashar_cli.data.conditions.by_class import Labels
from flashar_cli.data.conditions.features import CaptionFeatures
from flashar_cli.data.conditions.text import Prompts
from flashar_cli.data.tokens import TokenSet, choose_rows, ids_sha256, split_validation
from flashar_cli.errors import FlasharError


def make_set(count: int = 30) -> TokenSet:
    rng = np.random.default_rng(0)
    ids = np.array([f"{k:04d}" for k in range(count)])
    return TokenSet(
        rng.integers(0, 32, (count, 2, 3)).astype(np.int32), ids, Labels(np.arange(count, dtype=np.int64) % 5)
    )


def test_subset_is_balanced_and_does_not_depend_on_file_order():
    data = make_set()
    rows = choose_rows(data.ids, data.subjects.labels, 12, seed=0)
    counts = np.bincount(data.subjects.labels[rows], minlength=5)
    assert len(rows) == 12 and counts.max() - counts.min() <= 1
    shuffle = np.random.default_rng(1).permutation(30)
    again = choose_rows(data.ids[shuffle], data.subjects.labels[shuffle], 12, seed=0)
    assert data.ids[rows].tolist() == data.ids[shuffle][again].tolist()
    assert data.ids[rows].tolist() != data.ids[choose_rows(data.ids, data.subjects.labels, 12, seed=1)].tolist()
    assert sorted(choose_rows(data.ids, data.subjects.labels, None, 0)) == list(range(30))
    with pytest.raises(FlasharError, match="--subset is 0"):
        choose_rows(data.ids, data.subjects.labels, 0, 0)


def test_fingerprint_sees_content_not_order():
    data = make_set()
    assert data.fingerprint() == data.take(np.arange(29, -1, -1)).fingerprint()
    assert data.fingerprint() != data.take(slice(0, 29)).fingerprint()


def test_validation_is_the_last_images_and_no_others():
    train, validation = split_validation(make_set(10), 3)
    assert train.ids.tolist() == [f"{k:04d}" for k in range(7)]
    assert validation.ids.tolist() == ["0007", "0008", "0009"]
    assert np.array_equal(validation.tokens, make_set(10).tokens[7:])
    assert validation.subjects.labels.tolist() == [2, 3, 4]


def test_validation_never_takes_everything():
    train, validation = split_validation(make_set(10), 500)
    assert (len(train), len(validation)) == (5, 5)
    with pytest.raises(FlasharError, match="too few"):
        split_validation(make_set(1), 1)


def test_a_subset_of_captioned_images_follows_the_hash_alone():
    data = make_set()
    order = choose_rows(data.ids, None, None, 3)
    assert np.array_equal(choose_rows(data.ids, None, 7, 3), order[:7])
    assert ids_sha256(data.ids[order]) == ids_sha256(data.ids) != ids_sha256(data.ids[:-1])


def test_one_view_is_what_it_was_before_there_were_views():
    data = make_set()
    assert data.num_views == 1 and data.tokens.shape == (30, 1, 2, 3)
    # The fingerprint of recorded runs: int32 tokens, labels, ids.
    import hashlib

    digest = hashlib.sha256(data.tokens.astype("<i4").tobytes() + data.subjects.labels.tobytes())
    digest.update("\n".join(data.ids.tolist()).encode())
    narrow = TokenSet(data.tokens.astype(np.uint16), data.ids, data.subjects)
    assert data.fingerprint() == narrow.fingerprint() == digest.hexdigest()


def test_the_fingerprint_of_captions_is_of_their_text():
    """The fingerprint of recorded runs: int32 tokens, captions, ids, for features and for prompts."""
    import hashlib

    tokens, texts = np.arange(8, dtype=np.uint16).reshape(2, 1, 2, 2), np.array(["a star", "ring"], dtype=object)
    ids = np.array(["0", "1"])
    expected = hashlib.sha256(tokens.astype("<i4").tobytes() + b"a star\nring" + b"0\n1").hexdigest()
    zeros = np.zeros(2, np.int64)
    for subjects in (
        Prompts(texts, np.array([[1], [2]], dtype=object), TextPrefix(vocab_size=4), None),
        CaptionFeatures(texts, (), zeros, zeros, zeros, 4, 4),
    ):
        assert TokenSet(tokens, ids, subjects).fingerprint() == expected


def test_views_are_picked_by_row():
    tokens = np.arange(4 * 3 * 2 * 2, dtype=np.uint16).reshape(4, 3, 2, 2)
    data = TokenSet(tokens, np.array(list("abcd")), Labels(np.zeros(4, np.int64)))
    cpu = torch.device("cpu")
    assert np.array_equal(data.tensors(cpu)[0].numpy(), tokens[:, 0])
    assert np.array_equal(data.tensors(cpu, np.array([2, 0, 1, 1]))[0].numpy(), tokens[range(4), [2, 0, 1, 1]])
