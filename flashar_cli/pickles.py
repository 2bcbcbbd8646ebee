"""Pickled files."""

from __future__ import annotations

from typing import IO

import torch


def save_pickle(document: object, file: IO[bytes]) -> None:
    """``torch.save`` that reports a full disk as the OSError it is."""
    try:
        torch.save(document, file)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error
