"""Safetensors files as this package reads and writes them, against the library of that format."""

from __future__ import annotations

import io
import json
import os

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from flashar_cli.errors import FlasharError
from flashar_cli.files import shards
from flashar_cli.files.lazy import Held, Made, lazily
from flashar_cli.files.shards import INDEX_FILE, MODEL_FILE, open_tensors, open_weights, write_tensors, write_weights
from tests.upstream_shards import values_of, write_shards

MIXED = {
    "scalar": torch.tensor(3.5),
    "half": torch.randn(3).half(),
    "wide": torch.randn(2, 3, dtype=torch.float64),
    "brain.é": torch.randn(5, 2, 2).bfloat16(),
    "turned": torch.randn(4, 3).T,
    "flags": torch.tensor([True, False, True]),
    "ids": torch.tensor([[1], [-1]]),
}


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


def test_the_library_reads_what_is_written():
    file = io.BytesIO()
    write_tensors(lazily(MIXED), file)
    found = load(file.getvalue())
    assert found.keys() == MIXED.keys() and all(same(found[name], MIXED[name]) for name in MIXED)
    length = int.from_bytes(file.getvalue()[:8], "little")
    header = json.loads(file.getvalue()[8 : 8 + length])
    for name, tensor in MIXED.items():  # so that others can map them
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.itemsize == 0


def test_what_the_library_writes_is_read(tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in MIXED.items()}, tmp_path / "a.safetensors")
    found = open_tensors(tmp_path / "a.safetensors")
    assert found.keys() == MIXED.keys()
    for name, tensor in MIXED.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert same(found[name].read(), tensor)
        if tensor.ndim:
            assert same(found[name].read(1), tensor[1:]) and same(found[name].read(0, 1), tensor[:1])
            assert same(found[name].read(1, 3), tensor[1:3])
    first = found["wide"].read()
    first.zero_()
    assert same(found["wide"].read(), MIXED["wide"])  # the file is as it was


def test_only_headers_are_read_at_first(tmp_path):
    write_shards(tmp_path, {"a": (4, 3), "b": (2, 3)}, 2, torch.float32)
    state = open_weights(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        with open(path, "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(bytes(8))
    expected = values_of("b", (2, 3), torch.float32)
    expected[1, 1:] = 0
    assert same(state["b"].read(), expected)
    os.truncate(tmp_path / "model-00002-of-00002.safetensors", 100)
    with pytest.raises(FlasharError, match="model-00002-of-00002.safetensors has become shorter while it was read"):
        state["b"].read()


def test_files_stay_below_the_limit(tmp_path):
    state = {f"t{k}": torch.randn(10, 10) for k in range(7)}
    write_weights(lazily(state), tmp_path, MODEL_FILE, "1KB")
    places = json.loads((tmp_path / INDEX_FILE).read_text())["weight_map"]
    assert sorted({*places.values(), INDEX_FILE}) == sorted(path.name for path in tmp_path.iterdir())
    assert sorted(set(places.values())) == [f"model-0000{k}-of-00004.safetensors" for k in (1, 2, 3, 4)]
    for name, tensor in state.items():
        assert same(load_file(tmp_path / places[name])[name], tensor)
        assert same(open_weights(tmp_path)[name].read(), tensor)


def test_a_tensor_is_read_when_its_turn_comes(tmp_path):
    reads: list[tuple[str, int]] = []

    class Watched(Held):
        def read(self, first: int = 0, last: int | None = None) -> torch.Tensor:
            reads.append((str(self.shape), file.tell()))
            return super().read(first, last)

    file = io.BytesIO()
    write_tensors({"a": Watched(torch.ones(8, 8)), "b": Watched(torch.ones(4, 4))}, file)
    (_, first), (_, second) = reads
    assert second - first == 8 * 8 * 4


@pytest.mark.parametrize(
    ("damage", "words"),
    (
        (lambda folder, a, b: os.truncate(folder / b, 120), "model-00002-of-00002.safetensors is not a valid"),
        (lambda folder, a, b: (folder / b).unlink(), "model-00002-of-00002.safetensors is missing"),
        (
            lambda folder, a, b: [(folder / each).unlink() for each in (a, b)],
            "00001.* is missing; .*00002.* is missing",
        ),
        (lambda folder, a, b: save_file({"b": torch.ones(0, 3)}, folder / b), "no plain weights: b is empty"),
        (lambda folder, a, b: save_file({"c": torch.ones(2)}, folder / b), "holds c, .* in None; .* lacks b"),
        (lambda folder, a, b: save_file({k: torch.ones(2) for k in "ab"}, folder / b), f"{'holds a, .*'}model-00001"),
    ),
    ids=("short", "absent", "none", "empty", "other", "twice"),
)
def test_every_fault_of_files_is_told_without_reading_them(tmp_path, monkeypatch, damage, words):
    places = write_shards(tmp_path, {"a": (4, 3), "b": (2, 3)}, 2)
    damage(tmp_path, places["a"], places["b"])
    monkeypatch.setattr(shards.Stored, "read", None)
    with pytest.raises(FlasharError, match=words) as error:
        open_weights(tmp_path)
    assert "\n" not in str(error.value)


def test_tensors_are_made_in_one_order_and_cast(tmp_path):
    """By the process that writes and by another one that takes part, in the same order."""
    sizes = {"a": 500, "b": 600, "c": 100, "d": 2000}
    made: dict[str, list[str]] = {"writer": [], "helper": []}

    def tensor_of(who: str, name: str) -> Made:
        def make() -> torch.Tensor:
            made[who].append(name)
            return torch.arange(sizes[name], dtype=torch.float32)

        return Made((sizes[name],), torch.float16, make)

    for who, folder in (("writer", tmp_path), ("helper", None)):
        write_weights({name: tensor_of(who, name) for name in sizes}, folder, "model.safetensors", "2KB")
    assert made["writer"] == made["helper"] and sorted(made["writer"]) == list(sizes)
    found = {key: value for path in tmp_path.glob("*.safetensors") for key, value in load_file(path).items()}
    assert {name: (tensor.dtype, len(tensor)) for name, tensor in found.items()} == {
        name: (torch.float16, size) for name, size in sizes.items()
    }
