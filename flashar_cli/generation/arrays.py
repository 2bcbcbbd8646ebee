"""NumPy files that are larger than memory: written row by row, in any order."""

# By plain writes rather than a memory map, with which a full disk would end the process.

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 256


class ArrayFile:
    """A ``.npy`` file of one array, as ``np.save`` writes it; rows not written yet are zero. Threads may share it."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        """Opens the file and keeps the rows that it has, or makes it. Raises OSError."""
        self._dtype, self._row_shape = np.dtype(dtype), shape[1:]
        self._row_bytes = int(np.prod(self._row_shape, dtype=np.int64)) * self._dtype.itemsize
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by close()
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, description)
        self._file.flush()
        self._start = self._file.tell()
        self._file.truncate(self._start + shape[0] * self._row_bytes)

    def write(self, first: int, rows: NDArray[np.generic]) -> None:
        """Puts rows at ``first`` and after. Raises OSError."""
        data = memoryview(np.ascontiguousarray(rows, self._dtype).tobytes())
        place = self._start + first * self._row_bytes
        while data:
            count = os.pwrite(self._file.fileno(), data, place)
            data, place = data[count:], place + count

    def read(self, first: int, count: int) -> NDArray[np.generic]:
        """Rows ``first`` to ``first + count``. Raises OSError."""
        data = os.pread(self._file.fileno(), count * self._row_bytes, self._start + first * self._row_bytes)
        return np.frombuffer(data, self._dtype).reshape(count, *self._row_shape)

    def close(self) -> None:
        """Writes what the system still holds back, and closes the file."""
        os.fsync(self._file.fileno())
        self._file.close()


def write_maps(array: Path, shapes: Mapping[str, tuple[int, ...]], file: IO[bytes]) -> None:
    """Writes the maps that the rows of a ``.npy`` file are, one after the other, as arrays [N, *shape] of an archive, a
    piece at a time.
    """
    rows = np.load(array, mmap_mode="r")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        first = 0
        for name, shape in shapes.items():
            last = first + shape[0] * shape[1]
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (len(rows), *shape)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    member.write(np.ascontiguousarray(rows[start : start + ROWS_AT_ONCE, first:last]).tobytes())
            first = last


def write_npz(array: Path, file: IO[bytes]) -> None:
    """Writes the array of a ``.npy`` file as ``arr_0`` of an archive, as ``np.savez`` does, a piece at a time."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
        open(array, "rb") as source,
    ):
        shutil.copyfileobj(source, member, 1 << 20)
