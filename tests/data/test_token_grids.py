"""Token grids of other programs: what torch.save writes, read back or refused with its reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from flashar_cli.data.token_grids import read_token_grid
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

GRID, VOCAB = Grid(2, 3), 131_072
GOOD = torch.tensor([[0, 1, 65_536], [131_071, 7, 9]])


def saved(document: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer, **options)
    return buffer.getvalue()


class Harm:
    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint32))
def test_round_trip(dtype):
    found = read_token_grid(saved(GOOD.to(dtype)), GRID, VOCAB)
    assert found.dtype == np.int32 and found.tolist() == GOOD.tolist()


def test_what_upstream_writes():
    """Cropped grids are views of a larger tensor, and old files are no archives."""
    wide = torch.arange(20).reshape(4, 5)
    assert read_token_grid(saved(wide[:2, :3]), GRID, 20).tolist() == [[0, 1, 2], [5, 6, 7]]
    old = saved(GOOD, _use_new_zipfile_serialization=False)
    assert read_token_grid(old, GRID, VOCAB).tolist() == GOOD.tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    (
        (saved(GOOD[:, :2]), r"int64 \[2, 2\]; expected whole numbers \[2, 3\]"),
        (saved(GOOD.T.contiguous()), r"int64 \[3, 2\]"),
        (saved(GOOD.reshape(-1)), r"\[6\]"),
        (saved(GOOD[None]), r"\[1, 2, 3\]"),
        (saved(torch.ones(1, dtype=torch.int64).expand(10**6, 10**6)), r"\[1000000, 1000000\]"),
        (saved(GOOD.float()), r"float32 \[2, 3\]"),
        (saved(GOOD > 0), r"bool \[2, 3\]"),
        (saved(GOOD.to(torch.complex64)), r"complex64 \[2, 3\]"),
        (saved(GOOD + 151_854), r"151854\.\.282925; expected 0\.\.131071.* without the offset"),
        (saved(GOOD - 1), r"-1\.\.131070"),
        (saved(torch.full((2, 3), 131_072)), r"131072\.\.131072"),
        (saved(torch.full((2, 3), 2**40)), r"tokens are 1099511627776"),
        (saved(GOOD.to_sparse()), "holds a sparse tensor"),
        (saved(torch.empty(2, 3, dtype=torch.int64, device="meta")), "device meta"),
        (saved([GOOD]), "holds a list"),
        (saved({"tokens": GOOD}), "holds a dict"),
        (saved(GOOD.tolist()), "holds a list"),
        (saved(Harm()), "is refused: it wants to call .*print"),
        (saved(GOOD)[:-40], "cannot be read"),
        (b"", "cannot be read"),
        (b"no tensor", "refused|cannot be read"),
    ),
    ids=range(21),
)
def test_what_is_no_grid_of_the_model(content, words, capsys):
    with pytest.raises(FlasharError, match=words) as error:
        read_token_grid(content, GRID, VOCAB)
    assert "\n" not in str(error.value) and "harm" not in capsys.readouterr().out
