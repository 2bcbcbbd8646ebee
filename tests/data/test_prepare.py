"""What adapt and probe get from ``--data``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.encoding import encode
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_encoding, plan_tokens
from flashar_cli.data.tokens import choose_rows
from flashar_cli.errors import FlasharError
from flashar_cli.machine.world import World
from tests.data.images import shape_folder

FLIP = EncodeOptions(DataSettings(augment="center-flip"))


@pytest.fixture
def loaded(write_tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    return checkpoint.load(write_tiny_checkpoint(), torch.device("cpu"), torch.float32)


def test_images_are_encoded_once_and_shuffled_by_the_seed(loaded, tmp_path):
    folder = shape_folder(tmp_path / "images", 40)
    (folder / "ring" / "bad.png").write_bytes(b"")
    options = EncodeOptions(DataSettings(max_bad="1"))
    plan = plan_tokens(loaded, str(folder), None, 5, options)
    assert plan.num_images == 41 and "encoding 41 into" in plan.note
    counted: list[int] = []
    first = plan.tokens(counted.append)
    assert sum(counted) == 41 and len(first) == 40 and first.tokens.dtype == np.uint16
    assert np.array_equal(choose_rows(first.ids, first.subjects.labels, None, 5), np.arange(40))
    again = plan_tokens(loaded, str(folder), None, 5, options)
    assert "their tokens are in" in again.note
    assert again.tokens(lambda count: pytest.fail("encoded again")).fingerprint() == first.fingerprint()
    other_seed = plan_tokens(loaded, str(folder), None, 6, options)
    assert "their tokens are in" in other_seed.note
    assert other_seed.tokens(lambda count: None).ids.tolist() != first.ids.tolist()
    (folder / "ring" / "bad.png").unlink()
    flipped = plan_tokens(loaded, str(folder), 20, 5, FLIP).tokens(lambda count: None)
    assert flipped.num_views == 2 and len(flipped) == 20
    assert len(list((tmp_path / "home" / "codes").iterdir())) == 2


def test_code_shards_are_taken_as_they_are(loaded, tmp_path):
    folder, out = shape_folder(tmp_path / "images", 20), tmp_path / "shards"
    encode(plan_encoding(loaded, str(folder), None, 0, FLIP), out, World())
    for options in (EncodeOptions(), FLIP):
        data = plan_tokens(loaded, str(out), 10, 0, options).tokens(lambda count: None)
        assert len(data) == 10 and data.num_views == 2
    for options, words in (
        (EncodeOptions(DataSettings(augment="ten-crop")), "augmentation center-flip, the recipe says ten-crop"),
        (EncodeOptions(DataSettings(split="train")), "no use for --split"),
    ):
        with pytest.raises(FlasharError, match=words):
            plan_tokens(loaded, str(out), 10, 0, options)
    assert not (tmp_path / "home").exists()


def test_labels_beyond_the_models_are_refused(loaded, tmp_path):
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "label": 10}')
    with pytest.raises(FlasharError, match=r"labels 10..10; this model knows 0..9"):
        plan_tokens(loaded, str(tmp_path / "list.jsonl"), None, 0)
