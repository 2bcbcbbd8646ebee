"""Caption features beside tokens: the encoder's output is read back for any images in any order."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import ClassPrefix
from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.conditions.by_class import ClassConditions
from flashar_cli.data.conditions.caption import CaptionConditions, CaptionEncoder, encode_captions
from flashar_cli.data.conditions.features import feature_bytes, open_features
from flashar_cli.data.encoding import encode
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_encoding
from flashar_cli.data.shards import read_shards
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine.world import World
from tests.data.images import captioned_images
from tests.tiny_models import CAPTION_PREFIX as PREFIX

CPU = torch.device("cpu")
CAPTIONS = CaptionConditions(PREFIX, Grid(4, 4))


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
        assert torch.equal(taken.tensors["features"][row, 6 - length :], features[index, :length].float())
        assert not taken.tensors["features"][row, : 6 - length].any()
        assert taken.tensors["mask"][row].tolist() == [0] * (6 - length) + [1] * length
    for wrong, words in (((files, texts, 5, 16), "up to 6 tokens"), ((files, texts, 6, 8), "reads 8 values")):
        with pytest.raises(FlasharError, match=words):
            open_features(*wrong)
    with pytest.raises(FlasharError, match="4 captions have 5 features"):
        open_features(files, texts[:4], 6, 16)


def test_tokens_with_captions(caption_checkpoint, small_text_encoder, tmp_path):
    loaded = checkpoint.load(caption_checkpoint, CPU, torch.float32)
    lines = captioned_images(tmp_path / "images", 10)
    (tmp_path / "images" / "3.png").write_bytes(b"")
    how = EncodeOptions(DataSettings(max_bad="1"), batch_size=3, shard_size=6)
    job = plan_encoding(loaded, str(lines), 9, 0, how)
    for name in ("one", "two"):
        for rank in range(1 if name == "one" else 2):
            encode(job, tmp_path / name, World(rank, 1 if name == "one" else 2))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1] and {"captions-00000.safetensors", "captions-00001.safetensors"} < set(
        contents[0]
    )
    data = read_shards(tmp_path / "one", job.encoder.grid, 32, None, CAPTIONS)
    assert data.subjects.labels is None
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert len(data) == manifest["counts"]["pictures"] == 9 - manifest["counts"]["bad"]
    tokens, conditions = data.tensors(CPU)
    expected = encode_captions(data.subjects.names(), PREFIX.length, CPU)
    assert torch.equal(conditions.tensors["mask"], expected.tensors["mask"]) and tokens.shape == (len(data), 4, 4)
    # bfloat16 is rounded differently in other batches.
    features, others = (each.tensors["features"] for each in (conditions, expected))
    mask = expected.tensors["mask"][..., None]
    torch.testing.assert_close(features * mask, features)
    torch.testing.assert_close(features, others * mask, atol=0.05, rtol=0.05)
    loaded.model.prefix.check(conditions)
    assert data.fingerprint() == data.take(np.arange(len(data))[::-1]).fingerprint()
    (tmp_path / "one" / "captions-00001.safetensors").unlink()
    with pytest.raises(FlasharError, match=r"captions-00001.safetensors is missing"):
        read_shards(tmp_path / "one", job.encoder.grid, 32, None, CAPTIONS)
    with pytest.raises(FlasharError, match="no column label"):
        read_shards(
            tmp_path / "two", job.encoder.grid, 32, None, ClassConditions(ClassPrefix(num_classes=10), Grid(4, 4))
        )
    assert encode(job, tmp_path / "one", World()) == 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == contents[0]


def test_the_encoder_pads_on_the_right(small_text_encoder):
    features, mask = CaptionEncoder(CPU)(["A red star ", "star"], 4)
    assert features.dtype == torch.bfloat16 and mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
