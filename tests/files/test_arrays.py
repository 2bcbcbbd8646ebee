"""Arrays of archives, piece by piece, against NumPy's own reader."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from flashar_cli.errors import FlasharError
from flashar_cli.files.arrays import NpzArray, npz_names


@pytest.mark.parametrize("save", (np.savez, np.savez_compressed))
@pytest.mark.parametrize("size", (1, 3, 10, 100))
def test_pieces_are_the_whole(tmp_path, save, size):
    values = np.arange(10 * 4 * 3, dtype=np.int64).reshape(10, 4, 3)
    save(tmp_path / "a.npz", arr_0=values, other=np.zeros(2))
    array = NpzArray(tmp_path / "a.npz", "arr_0")
    pieces = list(array.batches(size))
    assert np.array_equal(np.concatenate(pieces), values) and max(map(len, pieces)) == min(size, 10)
    assert np.array_equal(array.whole(), values) and len(array) == 10 and array.dtype == np.int64
    assert npz_names(tmp_path / "a.npz") == {"arr_0", "other"}


@pytest.mark.parametrize(
    ("values", "words"),
    (
        (np.asfortranarray(np.zeros((3, 4))), "one row after the other"),
        (np.array([object()]), "is object"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array(3.0), r"shape \(\)"),
    ),
)
def test_what_is_no_rows_of_numbers_is_refused(tmp_path, values, words):
    np.savez(tmp_path / "a.npz", arr_0=values)
    with pytest.raises(FlasharError, match=words):
        NpzArray(tmp_path / "a.npz", "arr_0")


def test_another_name_and_a_cut_member(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros(100))
    with pytest.raises(FlasharError, match="has no array arr_1"):
        NpzArray(tmp_path / "a.npz", "arr_1")


def write_header(path, shape):
    """An archive whose array has a header alone."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})


def test_many_rows_are_read_a_piece_at_a_time(tmp_path):
    """As many images as a published FID takes are more than 2^32 values."""
    write_header(tmp_path / "a.npz", (50_000, 256, 256, 3))
    array = NpzArray(tmp_path / "a.npz", "arr_0")
    assert len(array) == 50_000
    with pytest.raises(FlasharError, match="expected a small array"):
        array.whole()
    for shape in ((2, 2**33), (0, 3), ()):
        write_header(tmp_path / "b.npz", shape)
        with pytest.raises(FlasharError, match="one row after the other"):
            NpzArray(tmp_path / "b.npz", "arr_0")
