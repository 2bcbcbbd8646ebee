"""Streamed files against those of huggingface_hub, and which tensors are in memory while they are written."""

from __future__ import annotations

import json

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from flashar_cli.files.streaming import Later, save_tensors

STATE = {name: torch.arange(size, dtype=torch.float32) for name, size in (("a", 50), ("b", 60), ("c", 10), ("d", 200))}


def test_files_and_index_are_those_of_the_hub(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    save_tensors({name: Later.of(tensor) for name, tensor in STATE.items()}, ours, "model.safetensors", 500)
    save_torch_state_dict(STATE, theirs, max_shard_size=500)
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in ours.glob("*.safetensors"):
        torch.testing.assert_close(load_file(path), load_file(theirs / path.name), rtol=0, atol=0)
    index = "model.safetensors.index.json"
    assert json.loads((ours / index).read_text()) == json.loads((theirs / index).read_text())


def test_tensors_are_made_in_one_order_cast_and_one_file_at_a_time(tmp_path):
    made: dict[str, list[str]] = {"writer": [], "helper": []}

    def later(who: str, name: str) -> Later:
        def make() -> torch.Tensor:
            made[who].append(name)
            if who == "writer":  # the files of all before the current one are there
                written = {key for path in tmp_path.glob("*.safetensors") for key in load_file(path)}
                assert set(made[who][:-2]) <= written | {"c"}
            return STATE[name]

        return Later(STATE[name].shape, torch.float16, make)

    for who, folder in (("writer", tmp_path), ("helper", None)):
        save_tensors({name: later(who, name) for name in STATE}, folder, "model.safetensors", 200)
    assert made["writer"] == made["helper"] and sorted(made["writer"]) == list(STATE)
    found = {key: value for path in tmp_path.glob("*.safetensors") for key, value in load_file(path).items()}
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(STATE, torch.float16)


def test_tied_and_transposed_tensors_are_written_apart(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    state = {"table": table, "tied": table, "turned": table.T}
    save_tensors({name: Later.of(tensor) for name, tensor in state.items()}, tmp_path, "model.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), state)
