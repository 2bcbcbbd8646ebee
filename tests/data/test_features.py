"""Caption features beside codes: what the encoder gave comes back, whatever pictures are taken in whatever order."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from flashar_cli import checkpoint
from flashar_cli.data.captions import CaptionEncoder, encode_captions
from flashar_cli.data.encode_job import MaxBad
from flashar_cli.data.encoding import encode
from flashar_cli.data.features import feature_bytes, open_features
from flashar_cli.data.prepare import EncodeOptions, plan_encoding
from flashar_cli.data.shards import read_shards
from flashar_cli.errors import FlasharError
from flashar_cli.world import World
from tests.data.pictures import captioned_pictures
from tests.tiny_models import CAPTION_PREFIX as PREFIX

CPU = torch.device("cpu")


def test_features_come_back_left_padded(tmp_path):
    features = torch.randn(5, 6, 16).to(torch.bfloat16)
    lengths = [1, 6, 3, 2, 4]
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    for part in (slice(0, 2), slice(2, 5)):
        (tmp_path / f"{part.start}.safetensors").write_bytes(feature_bytes(features[part], mask[part]))
    texts = np.array([f"caption {index}" for index in range(5)], dtype=object)
    files = [tmp_path / "0.safetensors", tmp_path / "2.safetensors"]
    store = open_features(files, texts, 6, 16)
    taken = store.take(np.array([3, 0, 4])).conditions()
    for row, index in enumerate((3, 0, 4)):
        length = lengths[index]
        assert torch.equal(taken.features[row, 6 - length :], features[index, :length].float())
        assert not taken.features[row, : 6 - length].any()
        assert taken.mask[row].tolist() == [0] * (6 - length) + [1] * length
    for wrong, words in (((files, texts, 5, 16), "up to 6 tokens"), ((files, texts, 6, 8), "reads 8 values")):
        with pytest.raises(FlasharError, match=words):
            open_features(*wrong)
    with pytest.raises(FlasharError, match="4 captions have 5 features"):
        open_features(files, texts[:4], 6, 16)


def test_codes_with_captions(caption_checkpoint, small_text_encoder, tmp_path):
    loaded = checkpoint.load(caption_checkpoint, CPU, torch.float32)
    lines = captioned_pictures(tmp_path / "pictures", 10)
    (tmp_path / "pictures" / "3.png").write_bytes(b"")
    how = EncodeOptions(batch_size=3, shard_size=6, max_bad=MaxBad("1"))
    job = plan_encoding(loaded, str(lines), 9, 0, how)
    for name in ("one", "two"):
        for rank in range(1 if name == "one" else 2):
            encode(job, tmp_path / name, World(rank, 1 if name == "one" else 2))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1] and {"captions-00000.safetensors", "captions-00001.safetensors"} < set(
        contents[0]
    )
    data = read_shards(tmp_path / "one", job.grid, 32, None, PREFIX)
    assert data.labels is None and data.captions is not None
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert len(data) == manifest["counts"]["pictures"] == 9 - manifest["counts"]["bad"]
    codes, conditions = data.tensors(CPU)
    expected = encode_captions(data.captions.texts.tolist(), PREFIX.length, CPU)
    assert torch.equal(conditions.mask, expected.mask) and codes.shape == (len(data), 4, 4)
    # Other batches, other rounding in bfloat16.
    torch.testing.assert_close(conditions.features * conditions.mask[..., None], conditions.features)
    torch.testing.assert_close(conditions.features, expected.features * expected.mask[..., None], atol=0.05, rtol=0.05)
    loaded.model.prefix.check(conditions)
    assert data.fingerprint() == data.take(np.arange(len(data))[::-1]).fingerprint()
    (tmp_path / "one" / "captions-00001.safetensors").unlink()
    with pytest.raises(FlasharError, match=r"captions-00001.safetensors is missing"):
        read_shards(tmp_path / "one", job.grid, 32, None, PREFIX)
    with pytest.raises(FlasharError, match="no column label"):
        read_shards(tmp_path / "two", job.grid, 32, None)
    assert encode(job, tmp_path / "one", World()) == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == contents[0]


def test_the_encoder_pads_on_the_right(small_text_encoder):
    features, mask = CaptionEncoder(CPU)(["A red star ", "star"], 4)
    assert features.dtype == torch.bfloat16 and mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
