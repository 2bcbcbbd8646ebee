"""Files of tensors that are read whole: safetensors and pickles."""

from __future__ import annotations

import argparse
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import check_file, open_file, reason

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def open_safetensors(path: Path, where: str | None = None, framework: str = "pt") -> Iterator[Any]:
    """``safetensors.safe_open``. Raises FlasharError for any other file, also while it is read."""
    where = where or str(path)
    check_file(path, where)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, FlasharError):
            raise
        raise FlasharError(
            f"{where} is not a valid safetensors file ({reason(error)}); it may be truncated or foreign, copy it again"
        ) from None


def read_safetensors(path: Path, where: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises FlasharError."""
    with open_safetensors(path, where) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def describe_problems(problems: list[str], most: int = 8) -> str:
    """Problems on one line, the first few by name."""
    rest = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + rest


def read_pickle(path: Path) -> object:
    """What ``torch.save`` wrote, on the CPU. Raises FlasharError for what can't be read, and for a file that would run
    code: it is read with ``weights_only=True``.
    """
    size = check_file(path)
    with open_file(path) as file:
        return _unpickled(file, size, str(path))


def read_tensor(content: bytes) -> Tensor:
    """The one tensor that ``torch.save`` wrote, plain and on the CPU. Raises FlasharError as ``read_pickle``, and for
    anything else.
    """
    found = _unpickled(io.BytesIO(content), len(content), "it")
    kind = _foreign_kind(found) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    if kind is not None:
        raise FlasharError(f"it holds {kind}; expected one dense tensor")
    assert isinstance(found, Tensor)
    return Tensor.as_subclass(Tensor.detach(found), Tensor)


def _unpickled(file: IO[bytes], size: int, where: str) -> object:
    # Tensor subclasses of FSDP-saved files, and the arguments that LlamaGen's trainer saves beside its weights.
    harmless: list[Any] = [torch._tensor._rebuild_from_type_v2, argparse.Namespace]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
            warnings.simplefilter("ignore")  # they are about kinds of tensors that are refused anyway
            _refuse_compressed(file, size)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FlasharError as error:
        raise FlasharError(f"{where} {error}") from None
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"it wants to call {blocked[1]}" if blocked else "its pickle holds more than tensors"
        raise FlasharError(f"{where} is refused: {detail}; expected a file of weights alone") from None
    except Exception as error:  # for a damaged file the unpickler raises almost any type
        raise FlasharError(
            f"{where} cannot be read ({reason(error)}); it may be truncated or foreign, download it again"
        ) from None


def save_pickle(document: object, file: IO[bytes]) -> None:
    """``torch.save``, but a full disk is an OSError."""
    try:
        torch.save(document, file)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def plain_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors without what a pickle may have attached to them. Raises FlasharError for what are no plain weights:
    sparse, nested, quantised, empty or without data, or larger in memory than in the file.
    """
    found, problems = {}, []
    for name, value in tensors.items():
        kind = _foreign_kind(value)
        if kind is not None:
            problems.append(f"{name} is {kind}")
        else:
            found[name] = Tensor.as_subclass(Tensor.detach(value), Tensor)
    if problems:
        raise FlasharError(f"{path} holds no plain weights: {describe_problems(problems, 4)}; save dense tensors")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found.values()}
    if sum(storages.values()) > path.stat().st_size:
        raise FlasharError(f"{path} claims more values than it holds; it is damaged, download it again")
    return found


def _foreign_kind(tensor: Tensor) -> str | None:
    """Why a tensor is no plain weights, None where it is."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return f"quantised ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.device.type != "cpu":
        return f"on device {tensor.device}, without data"
    if not tensor.numel():
        return f"empty {list(tensor.shape)}"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"{list(tensor.shape)} from {tensor.untyped_storage().nbytes()} bytes"
    return None


def _refuse_compressed(file: IO[bytes], size: int) -> None:
    """PyTorch never compresses tensors, so a compressed file was made to fill the memory."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > size:
                raise FlasharError("is a compressed archive; expected a file of torch.save")
    file.seek(0)
