"""Captions and their features on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flashar_cli.data.conditions import Given, caption
from flashar_cli.data.conditions.caption import CaptionConditions, read_caption_features
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from tests.tiny_models import CAPTION_PREFIX

CPU = torch.device("cpu")
GRID = Grid(4, 4)


def test_feature_files(tmp_path):
    path = tmp_path / "captions.safetensors"
    save_file({"caption_features": torch.zeros(2, 120, 8), "caption_mask": torch.ones(2, 120)}, path)
    assert len(read_caption_features(path)) == 2
    for bad in (
        {"caption_features": torch.zeros(2, 120, 8)},
        {"caption_features": torch.zeros(2, 8), "caption_mask": torch.zeros(2)},
    ):
        save_file(bad, path)
        with pytest.raises(FlasharError, match="expected"):
            read_caption_features(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FlasharError, match="not a valid safetensors"):
        read_caption_features(path)


def test_prompts_or_a_file_of_features(small_text_encoder, tmp_path):
    kind, path = CaptionConditions(CAPTION_PREFIX, GRID), tmp_path / "captions.safetensors"
    conditions, names = kind.parse(Given(prompts=["a red star", "ring"]), CPU)
    assert conditions.tensors["features"].shape == (2, 6, 16) and names == ["a red star", "ring"]
    save_file({"caption_features": torch.zeros(3, 6, 16), "caption_mask": torch.ones(3, 6)}, path)
    assert kind.parse(Given(caption_features=path), CPU)[1] == ["caption 0", "caption 1", "caption 2"]
    for given, words in (
        (Given(), "expected either --prompt or --caption-features FILE"),
        (Given(prompts=["a"], caption_features=path), "expected either --prompt or --caption-features FILE"),
        (Given(labels="1"), "caption-conditional; pass --prompt or --caption-features, not --labels"),
        (Given(prompts=["a"], prompt_tokens=path), "not --prompt-tokens"),
        (Given(prompts=["a"], negative_prompts=["b"]), "--negative-prompt: this model has learned features"),
    ):
        with pytest.raises(FlasharError, match=words):
            kind.parse(given, CPU)


def test_captions_without_features_cannot_be_read():
    with pytest.raises(FlasharError, match="shards has captions without features"):
        CaptionConditions(CAPTION_PREFIX, GRID).read(["a star"], [], Path("shards"))


def test_captions_become_left_padded_features(small_text_encoder):
    conditions = caption.encode_captions(["a red star", "Star"], 6, CPU)
    assert conditions.tensors["features"].shape == (2, 6, 16) and conditions.tensors["features"].dtype == torch.float32
    assert conditions.tensors["mask"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    alone = caption.encode_captions(["star"], 6, CPU)
    torch.testing.assert_close(
        alone.tensors["features"][0, -1], conditions.tensors["features"][1, -1], atol=1e-2, rtol=0
    )


def test_left_pad_moves_tokens_to_the_end():
    features = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    rolled, flipped = caption.left_pad(features, mask)
    assert rolled[0, :, 0].tolist() == [2, 3, 0, 1] and rolled[1, :, 0].tolist() == [4, 5, 6, 7]
    assert flipped.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_an_absent_text_encoder_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(caption, "TEXT_ENCODER", str(tmp_path / "nowhere"))
    with pytest.raises(FlasharError, match="--caption-features"):
        caption.encode_captions(["a star"], 4, CPU)
