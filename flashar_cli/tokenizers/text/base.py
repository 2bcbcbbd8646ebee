"""What every text tokenizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class TextTokenizer(ABC):
    """Text to ids 0..size-1 by vocabulary ``files``, for a model whose table of text tokens has ``size`` rows.

    ``names`` are the files in a checkpoint. A family's own files have the same suffixes, in the same order. A subclass
    raises FlasharError, when made, for files that are not of its kind or not of such a model.
    """

    names: ClassVar[tuple[str, ...]]

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files = tuple(files)

    @property
    def copies(self) -> dict[str, Path]:
        """What a checkpoint holds of it: the files by their names there."""
        return dict(zip(self.names, self.files, strict=True))

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The token ids of a Unicode text, without any special tokens around them."""
