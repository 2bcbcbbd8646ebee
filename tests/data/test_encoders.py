"""Stored token grids become the same shards as images do, without a tokenizer."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import TextPrefix
from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.encoding import encode, wait_for_manifest
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_encoding, plan_tokens
from flashar_cli.errors import FlasharError
from flashar_cli.machine.world import World
from tests.tiny_models import random_config

VOCAB, HEIGHT, WIDTH = 131_072, 2, 3


class Letters:
    """A text tokenizer: a letter is its code."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.fixture
def loaded(tmp_path, monkeypatch) -> checkpoint.Loaded:
    """A text-to-image model of 131072 tokens, without data, and without an image tokenizer."""
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    base = random_config(HEIGHT, WIDTH, branch=False, tokenizer=False)
    config = base.model_copy(
        update={
            "prefix": TextPrefix(vocab_size=128, max_length=20),
            "backbone": base.backbone.model_copy(update={"vocab_size": VOCAB}),
        }
    )
    return checkpoint.Loaded(checkpoint.model_on_meta(config), None, Letters())


def write_tar(path, grids, **changed):
    """Each grid as KEY.pt beside KEY.txt, as upstream packs them; ``changed`` replaces contents by key."""
    with tarfile.open(path, "w") as archive:
        for key, grid in enumerate(grids):
            buffer = io.BytesIO()
            torch.save(torch.from_numpy(grid), buffer)
            content = changed.get(f"k{key}", buffer.getvalue())
            for name, data in ((f"k{key}.pt", content), (f"k{key}.txt", f"words {key}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def make_grids(count: int = 10) -> np.ndarray:
    grids = np.random.default_rng(0).integers(0, VOCAB, (count, HEIGHT, WIDTH))
    grids[0, 0] = (0, 65_536, VOCAB - 1)
    return grids


def options(**data) -> EncodeOptions:
    return EncodeOptions(DataSettings(**data), batch_size=4, shard_size=6, device=torch.device("cpu"))


def test_tokens_are_taken_as_they_are(loaded, tmp_path):
    grids = make_grids()
    write_tar(tmp_path / "a.tar", grids)
    job, out = plan_encoding(loaded, str(tmp_path / "a.tar"), None, 0, options()), tmp_path / "out"
    encode(job, out, World())
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vocab_size"] == VOCAB and manifest["grid"] == [HEIGHT, WIDTH]
    assert manifest["tokenizer_sha256"] is None and manifest["dtype"] is None
    # Directly, and from the shards: the same tokens in the same order.
    direct = plan_tokens(loaded, str(tmp_path / "a.tar"), None, 0, options()).tokens(lambda count: None)
    stored = plan_tokens(loaded, str(out), None, 0, EncodeOptions()).tokens(lambda count: None)
    assert direct.fingerprint() == stored.fingerprint() and direct.ids.tolist() == stored.ids.tolist()
    assert direct.tokens.dtype == np.uint32 and direct.num_views == 1
    for row, name in enumerate(direct.ids.tolist()):
        key = int(name.rpartition("k")[2])
        assert np.array_equal(direct.tokens[row, 0], grids[key]) and direct.subjects.names()[row] == f"words {key}"
    tokens, conditions = direct.tensors(torch.device("cpu"))
    assert tokens.dtype == torch.int64 and tokens.max() > 65_535 and len(conditions) == 10


def test_bad_grids_are_bad_images(loaded, tmp_path):
    write_tar(tmp_path / "a.tar", make_grids(), k3=b"damaged", k7=b"")
    with pytest.raises(FlasharError, match=r"a.tar/k3 cannot be read as a grid of tokens \(it .*--max|1 of 10 images"):
        encode(plan_encoding(loaded, str(tmp_path), None, 0, options()), tmp_path / "out", World())
    assert not (tmp_path / "out").exists()
    job = plan_encoding(loaded, str(tmp_path), None, 0, options(max_bad="2"))
    encode(job, tmp_path / "out", World())
    manifest = wait_for_manifest(job, tmp_path / "out")
    assert {entry.id for entry in manifest.bad} == {"a.tar/k3", "a.tar/k7"} and manifest.counts.pictures == 8


@pytest.mark.parametrize(
    ("grids", "words"),
    (
        (make_grids().transpose(0, 2, 1), r"int64 \[3, 2\]; expected whole numbers \[2, 3\]"),
        (make_grids() + 151_854, "expected 0..131071, codes of the image tokenizer without the offset"),
        (make_grids().astype(np.float32), "float32"),
    ),
)
def test_a_data_set_of_other_tokens_is_one_line(loaded, tmp_path, grids, words):
    write_tar(tmp_path / "a.tar", np.ascontiguousarray(grids))
    with pytest.raises(FlasharError, match=words) as error:
        encode(plan_encoding(loaded, str(tmp_path), None, 0, options()), tmp_path / "out", World())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_tokens_cannot_be_cut(loaded, tmp_path):
    write_tar(tmp_path / "a.tar", make_grids(2))
    with pytest.raises(FlasharError, match="holds tokens, of which ten-crop can't be cut"):
        plan_encoding(loaded, str(tmp_path), None, 0, options(augment="ten-crop"))


def test_encode_reads_no_model(run_cli, text_checkpoint, tmp_path):
    """A model of 34 B weights would be hours of reading for nothing."""
    (text_checkpoint / "model.safetensors").unlink()
    write_tar(tmp_path / "a.tar", np.arange(64).reshape(4, 4, 4) // 2)
    result = run_cli("encode", text_checkpoint, "--data", tmp_path / "a.tar", "--out", tmp_path / "out")
    assert result.code == 0 and "4 images, 4 views" in result.out, result.err
    result = run_cli("encode", text_checkpoint, "--data", "shapes:4", "--out", tmp_path / "images")
    assert result.code == 0 and "4 images, 4 views" in result.out, result.err
