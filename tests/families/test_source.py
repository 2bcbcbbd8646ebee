"""Upstream files: what is read of them, and what is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from flashar_cli.errors import FlasharError
from flashar_cli.families.source import Source
from flashar_cli.inputs.reading import files_sha256


def test_a_directory_is_read_by_its_index(tmp_path):
    for name in ("a", "b"):
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    source = Source(tmp_path)
    assert source.state.keys() == {"a", "b"} and source.document("config.json") == {"model_type": "x"}
    assert source.document("generation_config.json") == {} == Source(tmp_path / "a.safetensors").document("config.json")
    content = b"".join((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert files_sha256(source.files) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("weight_map", "words"),
    (
        ({"a": "../a.safetensors"}, "same folder"),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing"),
        ({"a": "a.safetensors", "b": "a.safetensors"}, "a.safetensors lacks b"),
        ({"b": "a.safetensors"}, "holds a, which the index has in None"),
    ),
)
def test_an_index_names_what_is_there(tmp_path, weight_map, words):
    (tmp_path / "model").mkdir()
    for folder in (tmp_path, tmp_path / "model"):
        save_file({"a": torch.ones(2)}, folder / "a.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FlasharError, match=words):
        _ = Source(tmp_path / "model").state


@pytest.mark.parametrize("document", ({"a": torch.ones(2)}, {"state_dict": {"a": torch.ones(2)}, "epoch": 3}))
def test_a_directory_may_hold_one_pickle(tmp_path, document):
    torch.save(document, tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text("n_embed: 2\n")
    for path in (tmp_path, tmp_path / "model.ckpt"):
        source = Source(path)
        assert torch.equal(source.state["a"].read(), torch.ones(2)) and source.files == [tmp_path / "model.ckpt"]
    save_file({"b": torch.ones(2)}, tmp_path / "model.safetensors")
    assert Source(tmp_path).state.keys() == {"b"} and Source(tmp_path).files == [tmp_path / "model.safetensors"]


def test_a_damaged_pickle_in_a_directory_is_named(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(FlasharError, match=f"^{tmp_path}/model.ckpt cannot be read .*download it again$"):
        _ = Source(tmp_path).state


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(FlasharError, match="is a directory without model.safetensors"):
        Source(tmp_path)
    with pytest.raises(FlasharError, match="is not a file; expected a frog"):
        Source(tmp_path / "absent", "a frog")
    save_file({"a": torch.ones(0)}, tmp_path / "model.safetensors")
    with pytest.raises(FlasharError, match="no plain weights: a is empty"):
        _ = Source(tmp_path).state
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FlasharError, match="holds a list; expected a JSON object"):
        Source(tmp_path).document("config.json")


def test_only_pickles_need_room(tmp_path, monkeypatch):
    save_file({"a": torch.ones(200)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.ones(200)}, tmp_path / "model.pt")
    monkeypatch.setattr("flashar_cli.machine.memory.free_bytes", lambda device: 800)
    assert torch.equal(Source(tmp_path).state["a"].read(), torch.ones(200))
    with pytest.raises(FlasharError, match=f"{tmp_path / 'model.pt'} needs .* are free"):
        _ = Source(tmp_path / "model.pt").state
