from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from flashar_cli.data import captions
from flashar_cli.errors import FlasharError


def test_captions_become_left_padded_features(small_text_encoder):
    cpu = torch.device("cpu")
    conditions = captions.encode_captions(["a red star", "Star"], 6, cpu)
    assert conditions.features.shape == (2, 6, 16) and conditions.features.dtype == torch.float32
    assert conditions.mask.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    alone = captions.encode_captions(["star"], 6, cpu)
    torch.testing.assert_close(alone.features[0, -1], conditions.features[1, -1], atol=1e-2, rtol=0)


def test_left_pad_moves_tokens_to_the_end():
    features = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    rolled, flipped = captions.left_pad(features, mask)
    assert rolled[0, :, 0].tolist() == [2, 3, 0, 1] and rolled[1, :, 0].tolist() == [4, 5, 6, 7]
    assert flipped.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_an_absent_text_encoder_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(captions, "TEXT_ENCODER", str(tmp_path / "nowhere"))
    with pytest.raises(FlasharError, match="--caption-features"):
        captions.encode_captions(["a star"], 4, torch.device("cpu"))


def test_feature_files(tmp_path):
    path = tmp_path / "captions.safetensors"
    save_file({"caption_features": torch.zeros(2, 120, 8), "caption_mask": torch.ones(2, 120)}, path)
    assert len(captions.read_caption_features(path)) == 2
    for bad in (
        {"caption_features": torch.zeros(2, 120, 8)},
        {"caption_features": torch.zeros(2, 8), "caption_mask": torch.zeros(2)},
    ):
        save_file(bad, path)
        with pytest.raises(FlasharError, match="expected"):
            captions.read_caption_features(path)
    path.write_bytes(b"nothing")
    with pytest.raises(FlasharError, match="not a valid safetensors"):
        captions.read_caption_features(path)
