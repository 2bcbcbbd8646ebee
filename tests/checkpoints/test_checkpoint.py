"""Checkpoints in one file and in several."""

from __future__ import annotations

import json

import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.checkpoint import CHECKPOINT
from flashar_cli.errors import FlasharError
from flashar_cli.files.shards import INDEX_FILE
from tests.tiny_models import build_model, random_config

CPU = torch.device("cpu")


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """A model, and its checkpoint in parts of at most 20 kB."""
    monkeypatch.setattr(checkpoint, "MAX_SHARD_SIZE", "20KB")
    config = random_config(tokenizer=False)
    model = build_model(config)
    checkpoint.save(tmp_path / "model", config, model.state_dict(), None)
    return model, tmp_path / "model"


def test_all_parts_are_loaded(sharded):
    model, directory = sharded
    parts = sorted(path.name for path in directory.glob("model*.safetensors"))
    assert len(parts) > 5 and not (directory / checkpoint.MODEL_FILE).exists()
    weights = json.loads((directory / INDEX_FILE).read_text())["weight_map"]
    assert sorted(set(weights.values())) == parts
    loaded = checkpoint.load(directory, CPU)
    assert loaded.config == model.config and loaded.tokenizer is None
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert checkpoint.problems(directory) == [] and checkpoint.stored_dtype(directory) == torch.float32


def test_the_hash_is_of_all_parts(sharded):
    _, directory = sharded
    whole = checkpoint.weights_sha256(directory)
    for path in directory.glob("model*.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint.weights_sha256(directory) != whole
        path.write_bytes(content)
    assert checkpoint.weights_sha256(directory) == whole


def test_a_part_that_is_missing_is_named(sharded):
    _, directory = sharded
    part = sorted(directory.glob("model*.safetensors"))[2]
    part.unlink()
    with pytest.raises(FlasharError, match=f"{part.name} is missing"):
        checkpoint.load(directory, CPU)
    assert any(part.name in line for line in checkpoint.problems(directory))


@pytest.mark.parametrize("dtype", (torch.bfloat16, None))
def test_weights_take_the_dtype_asked_for(tmp_path, dtype):
    config = random_config(tokenizer=False)
    state = {name: tensor.half() for name, tensor in build_model(config).state_dict().items()}
    checkpoint.save(tmp_path / "model", config, state, None)
    loaded = checkpoint.load(tmp_path / "model", CPU, dtype).model
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype or torch.float16}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


def test_text_tokenizers_are_found_by_their_files(prompt_checkpoint, text_checkpoint):
    for directory, text, ids in ((prompt_checkpoint, "<|image token|>", [504]), (text_checkpoint, "red star", [2, 3])):
        loaded = checkpoint.load(directory, CPU)
        assert loaded.text_tokenizer is not None and checkpoint.problems(directory) == []
        assert set(loaded.text_tokenizer.files) <= set(directory.iterdir())
        assert CHECKPOINT.foreign(directory) is None
        assert loaded.text_tokenizer.encode(text) == ids
    (prompt_checkpoint / "text_tokenizer_special.txt").write_text("<|image token|>\n")
    with pytest.raises(FlasharError, match="this model's table has 507 rows"):
        checkpoint.load(prompt_checkpoint, CPU)
    assert any("507 rows" in line for line in checkpoint.problems(prompt_checkpoint))
    (prompt_checkpoint / "text_tokenizer_special.txt").unlink()
    with pytest.raises(FlasharError, match=r"lacks text_tokenizer_special\.txt"):
        checkpoint.load(prompt_checkpoint, CPU)
    (prompt_checkpoint / "text_tokenizer.tiktoken").unlink()
    assert checkpoint.load(prompt_checkpoint, CPU).text_tokenizer is None
    (prompt_checkpoint / "text_tokenizer.tiktoken").write_text("my notes")
    assert CHECKPOINT.foreign(prompt_checkpoint) == "text_tokenizer.tiktoken"
