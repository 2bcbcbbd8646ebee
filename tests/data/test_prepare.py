"""What adapt and probe get from ``--data``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashar_cli import checkpoint
from flashar_cli.data.augment import Augmentation
from flashar_cli.data.codes import choose_rows
from flashar_cli.data.encode_job import MaxBad
from flashar_cli.data.encoding import encode
from flashar_cli.data.prepare import EncodeOptions, plan_codes, plan_encoding
from flashar_cli.data.sources.base import Columns
from flashar_cli.errors import FlasharError
from flashar_cli.world import World
from tests.data.pictures import shape_folder

FLIP = Augmentation("center-flip")


@pytest.fixture
def loaded(write_tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    return checkpoint.load(write_tiny_checkpoint(), torch.device("cpu"), torch.float32)


def test_pictures_are_encoded_once_and_shuffled_by_the_seed(loaded, tmp_path):
    folder = shape_folder(tmp_path / "pictures", 40)
    (folder / "ring" / "bad.png").write_bytes(b"")
    options = EncodeOptions(max_bad=MaxBad("1"))
    plan = plan_codes(loaded, str(folder), None, 5, options)
    assert plan.num_images == 41 and "encoding 41 into" in plan.note
    counted: list[int] = []
    first = plan.codes(counted.append)
    assert sum(counted) == 41 and len(first) == 40 and first.codes.dtype == np.uint16
    assert np.array_equal(choose_rows(first.ids, first.labels, None, 5), np.arange(40))
    again = plan_codes(loaded, str(folder), None, 5, options)
    assert "their codes are in" in again.note
    assert again.codes(lambda count: pytest.fail("encoded again")).fingerprint() == first.fingerprint()
    other_seed = plan_codes(loaded, str(folder), None, 6, options)
    assert "their codes are in" in other_seed.note
    assert other_seed.codes(lambda count: None).ids.tolist() != first.ids.tolist()
    (folder / "ring" / "bad.png").unlink()
    flipped = plan_codes(loaded, str(folder), 20, 5, EncodeOptions(augmentation=FLIP)).codes(lambda count: None)
    assert flipped.num_views == 2 and len(flipped) == 20
    assert len(list((tmp_path / "home" / "codes").iterdir())) == 2


def test_code_shards_are_taken_as_they_are(loaded, tmp_path):
    folder, out = shape_folder(tmp_path / "pictures", 20), tmp_path / "shards"
    encode(plan_encoding(loaded, str(folder), None, 0, EncodeOptions(augmentation=FLIP)), out, World())
    for options in (EncodeOptions(), EncodeOptions(augmentation=FLIP)):
        data = plan_codes(loaded, str(out), 10, 0, options).codes(lambda count: None)
        assert len(data) == 10 and data.num_views == 2
    for options, words in (
        (EncodeOptions(augmentation=Augmentation("ten-crop")), "augmentation center-flip, the recipe says ten-crop"),
        (EncodeOptions(columns=Columns("train")), "no use for --split"),
    ):
        with pytest.raises(FlasharError, match=words):
            plan_codes(loaded, str(out), 10, 0, options)
    assert not (tmp_path / "home").exists()


def test_labels_beyond_the_models_are_refused(loaded, tmp_path):
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "label": 10}')
    with pytest.raises(FlasharError, match=r"labels 10..10; this model knows 0..9"):
        plan_codes(loaded, str(tmp_path / "list.jsonl"), None, 0)
