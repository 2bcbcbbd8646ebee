"""NumPy archives (.npz) from outside, read a piece at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import open_file, reason

MOST_VALUES = 2**32  # of a row, and of an array that is read as a whole


class NpzArray:
    """One array of a ``.npz`` file, in C order. Raises FlasharError for a file or an array that can't be read so."""

    def __init__(self, path: Path, name: str, where: str | None = None) -> None:
        self.path, self.name, self.where = path, name, where or str(path)
        with self._opened() as file:
            self.shape, self.dtype = self._header(file)

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """So many rows at a time."""
        row_shape = self.shape[1:]
        row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        with self._opened() as file:
            self._header(file)
            for start in range(0, len(self), size):
                count = min(size, len(self) - start)
                content = file.read(count * row_bytes)
                if len(content) != count * row_bytes:
                    raise FlasharError(f"{self.where} ends inside {self.name}; it may be truncated, copy it again")
                yield np.frombuffer(bytearray(content), self.dtype).reshape(count, *row_shape)

    def whole(self) -> NDArray[Any]:
        """All of it. Raises FlasharError where that is too much."""
        if np.prod([float(side) for side in self.shape]) > MOST_VALUES:
            raise FlasharError(f"{self.name} of {self.where} has shape {self.shape}; expected a small array")
        return next(self.batches(len(self)))

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        row_values = int(np.prod([float(side) for side in shape[1:]])) if shape and shape[0] else 0
        if is_fortran or dtype.hasobject or not 0 < row_values <= MOST_VALUES:
            raise FlasharError(
                f"{self.name} of {self.where} is {dtype} of shape {shape}; expected numbers, one row after the other"
            )
        return shape, dtype

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            with (
                open_file(self.path, self.where) as file,
                zipfile.ZipFile(file) as archive,
                archive.open(f"{self.name}.npy") as member,
            ):
                yield member
        except KeyError:
            raise FlasharError(f"{self.where} has no array {self.name}") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise FlasharError(
                f"{self.where} is not a valid .npz file ({reason(error)}); it may be truncated, copy it again"
            ) from None


def npz_names(path: Path, where: str | None = None) -> set[str]:
    """The names of the arrays of a ``.npz`` file. Raises FlasharError for another file."""
    where = where or str(path)
    try:
        with open_file(path, where) as file, zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise FlasharError(f"{where} is not a valid .npz file ({reason(error)})") from None
