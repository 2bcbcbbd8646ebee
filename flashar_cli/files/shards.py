"""Weights in safetensors files, in one or in several with an index, read and written tensor by tensor.

The format (README of huggingface/safetensors): the header's length as 8 bytes, little-endian; the header, JSON of
dtype, shape and place of every tensor; the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from pydantic import AfterValidator
from torch import Tensor

from flashar_cli.config import Config, validated
from flashar_cli.errors import FlasharError
from flashar_cli.files.lazy import Lazy
from flashar_cli.files.tensors import describe_problems, open_safetensors
from flashar_cli.inputs.reading import decode_text, open_file, parse_json, plain_name, read_json, reason

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardIndex(Config):
    """``model.safetensors.index.json``: which file of the directory each tensor is in."""

    metadata: dict[str, Any] | None = None
    weight_map: dict[str, Annotated[str, AfterValidator(plain_name)]]


class Stored(Lazy):
    """A tensor in a file, from byte ``offset`` on. It is copied, not mapped: what has been read can be freed, and a
    file that shrinks meanwhile is an error, not a signal.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: torch.dtype, offset: int) -> None:
        super().__init__(shape, dtype)
        self._path, self._offset = path, offset

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        shape, start = list(self.shape), 0
        if shape:
            first, last, _ = slice(first, last).indices(shape[0])
            start, shape[0] = first * (self.num_bytes // shape[0]), last - first
        tensor = torch.empty(shape, dtype=self.dtype)
        content = _bytes_of(tensor)
        with open_file(self._path) as file:
            try:
                file.seek(self._offset + start)
                count = file.readinto(content)
            except OSError as error:
                raise FlasharError(f"{self._path} cannot be read ({reason(error)}); copy it again") from None
        if count < len(content):
            raise FlasharError(f"{self._path} has become shorter while it was read; copy it again")
        return tensor


def open_weights(directory: Path) -> dict[str, Lazy]:
    """All tensors of ``weight_files``. Raises FlasharError for missing and damaged files, and where the index does not
    fit.
    """
    files, index = weight_files(directory), _read_index(directory)
    missing = [path.name for path in files if not os.path.lexists(path)]
    if missing:
        raise FlasharError(f"{directory}: {describe_problems([f'{name} is missing' for name in missing])}; copy it all")
    if index is None:
        return open_tensors(files[0])
    state: dict[str, Lazy] = {}
    problems: list[str] = []
    for path in files:
        for name, tensor in open_tensors(path).items():
            if index.weight_map.get(name) == path.name:
                state[name] = tensor
            else:
                problems.append(f"{path.name} holds {name}, which the index has in {index.weight_map.get(name)}")
    problems += [f"{place} lacks {name}" for name, place in index.weight_map.items() if name not in state]
    if problems:
        raise FlasharError(f"{directory / INDEX_FILE} does not match its files: {describe_problems(problems)}")
    return state


def open_tensors(path: Path) -> dict[str, Lazy]:
    """All tensors of a safetensors file. Raises FlasharError for another file, and for tensors without values."""
    with open_safetensors(path, framework="np"):  # whether header and size are right
        pass
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(decode_text(file.read(length), f"{path}"), f"the header of {path}")
    header.pop("__metadata__", None)
    problems = [f"{name} is {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in DTYPES]
    problems += [f"{name} is empty {entry['shape']}" for name, entry in header.items() if 0 in entry["shape"]]
    if problems:
        raise FlasharError(f"{path} holds no plain weights: {describe_problems(problems, 4)}; save dense tensors")
    return {
        name: Stored(path, entry["shape"], DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def weight_files(directory: Path) -> list[Path]:
    """The files of a model's weights: ``model.safetensors``, or those that its index names."""
    index = _read_index(directory)
    names = {MODEL_FILE} if index is None else set(index.weight_map.values())
    return [directory / name for name in sorted(names)]


def write_weights(state: Mapping[str, Lazy], directory: Path | None, name: str, max_shard_size: str) -> None:
    """Writes tensors into the file ``name``, or into several of that size with an index. Without a directory they are
    read in the same order and dropped, as another process writes them.
    """
    split = split_state_dict_into_shards_factory(
        dict(state),
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern=name.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=max_shard_size,
    )
    for file_name, names in split.filename_to_tensors.items():
        part = {each: state[each] for each in names}
        if directory is None:
            for each in _in_order(part):
                part[each].read()
        else:
            with open(directory / file_name, "wb") as file:
                write_tensors(part, file)
    if directory is not None and split.is_sharded:
        _write_index(directory / f"{name}.index.json", split.metadata, split.tensor_to_filename)


def link_weights(files: Sequence[Path], directory: Path) -> bool:
    """Puts links to files of weights into a directory, under the names that ``write_weights`` would give them. Returns
    whether they are hard links; where the file system has none between the two places they are symbolic ones.
    """
    numbered = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    places = {path: directory / name for path, name in zip(files, numbered, strict=True)}
    if len(files) == 1:
        places = {files[0]: directory / MODEL_FILE}
    else:
        weight_map = {name: places[path].name for path in files for name in open_tensors(path)}
        _write_index(directory / INDEX_FILE, {}, weight_map)
    hard = [_link(path.resolve(), place) for path, place in places.items()]
    return all(hard)


def write_tensors(state: Mapping[str, Lazy], file: IO[bytes]) -> None:
    """Writes a safetensors file. Wide dtypes come first, so that every tensor is aligned."""
    names = _in_order(state)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = state[name]
        start, end = end, end + tensor.num_bytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(_bytes_of(state[name].read().cpu().contiguous()))


def _in_order(state: Mapping[str, Lazy]) -> list[str]:
    return sorted(state, key=lambda name: (-state[name].dtype.itemsize, name))


def _link(path: Path, place: Path) -> bool:
    """Whether the link at ``place`` is a hard one."""
    try:
        os.link(path, place)
    except OSError:
        place.symlink_to(path)
        return False
    return True


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _read_index(directory: Path) -> ShardIndex | None:
    """None where the weights are in one file."""
    path = directory / INDEX_FILE
    if not os.path.lexists(path):
        return None
    return validated(read_json(path), ShardIndex, str(path), "an index of safetensors files")


def _write_index(path: Path, metadata: Mapping[str, Any], weight_map: Mapping[str, str]) -> None:
    document = {"metadata": metadata, "weight_map": weight_map}
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
