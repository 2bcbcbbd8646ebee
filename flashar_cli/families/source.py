"""What a family reads: a file of upstream weights, or a directory as Hugging Face's libraries write it. Torch is
imported only when tensors are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import check_file, read_json
from flashar_cli.machine.memory import require_memory

if TYPE_CHECKING:
    from torch import Tensor

    from flashar_cli.files.lazy import Lazy

WRAPPERS = ("model", "module", "state_dict")
PICKLE = "model.ckpt"
MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", PICKLE)


class Source:
    """A ``.safetensors`` file, a pickled ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` one, bare or under a wrapper key, or
    a directory with ``config.json`` and ``model.safetensors``, in one file or in several with an index, or with a
    pickled ``model.ckpt``.

    Pickles are read with ``weights_only=True``, so a file that would run code is refused. Raises FlasharError, when
    made and when read, for missing and for damaged files; the message says that ``what`` was expected.
    """

    def __init__(self, path: Path, what: str = "upstream weights (.pt, .safetensors or a directory with config.json)"):
        self.path = path
        if not path.exists():
            raise FlasharError(f"{path} is not a file; expected {what}")
        if path.is_dir() and not any((path / name).exists() for name in MODEL_FILES):
            raise FlasharError(f"{path} is a directory without {MODEL_FILES[0]} or {PICKLE}; expected {what}")

    def document(self, name: str) -> dict[str, Any]:
        """The JSON object in a file of the directory; an empty one where there is no such file."""
        path = self.path / name
        document = read_json(path) if path.exists() else {}
        if not isinstance(document, dict):
            raise FlasharError(f"{path} holds a {type(document).__name__}; expected a JSON object")
        return document

    @property
    def is_pickle(self) -> bool:
        return self._file is not None and self._file.suffix != ".safetensors"

    @property
    def files(self) -> list[Path]:
        """The files of tensors."""
        from flashar_cli.files.shards import weight_files

        return [self._file] if self._file is not None else weight_files(self.path)

    @cached_property
    def state(self) -> dict[str, Lazy]:
        """All tensors by upstream's names. Those of pickles are kept in memory, others are not read yet."""
        from flashar_cli.files.shards import open_tensors, open_weights

        if self.is_pickle:
            return _read_pickle(self.files[0])
        return open_tensors(self.path) if self._file is not None else open_weights(self.path)

    @property
    def _file(self) -> Path | None:
        """The only file of tensors; None for a directory of safetensors."""
        if not self.path.is_dir():
            return self.path
        pickled = not any((self.path / name).exists() for name in MODEL_FILES[:-1])
        return self.path / PICKLE if pickled else None

    def shape(self, name: str, title: str) -> tuple[int, int]:
        """Rows and columns of a matrix that every model of the family ``title`` has."""
        rows, columns = self._sizes(name, title, 2, "a matrix")
        return rows, columns

    def length(self, name: str, title: str) -> int:
        """The length of a vector that every model of the family ``title`` has."""
        return self._sizes(name, title, 1, "a vector")[0]

    def count_blocks(self, stack: str) -> int:
        """Blocks ``stack.0.*``, ``stack.1.*`` and so on. Raises FlasharError where one is missing between others."""
        # layers.05 is not another name of layers.5.
        matches = (re.match(rf"{re.escape(stack)}\.(0|[1-9][0-9]{{0,5}})\.", name) for name in self.state)
        indices = {int(match[1]) for match in matches if match}
        absent = next(index for index in range(len(indices) + 1) if index not in indices)
        if absent < len(indices):
            raise FlasharError(f"{self.path} has blocks up to {stack}.{max(indices)} and no {stack}.{absent}")
        return len(indices)

    def _sizes(self, name: str, title: str, ndim: int, what: str) -> tuple[int, ...]:
        if name not in self.state:
            raise FlasharError(f"{self.path} lacks {name}; expected a whole {title} checkpoint")
        shape = self.state[name].shape
        if len(shape) != ndim or 0 in shape:
            raise FlasharError(f"{self.path}: {name} is {list(shape)}; expected {what}")
        return tuple(shape)


def _read_pickle(path: Path) -> dict[str, Lazy]:
    from flashar_cli.files.lazy import lazily
    from flashar_cli.files.tensors import plain_tensors, read_pickle

    require_memory(str(path), check_file(path))
    return lazily(plain_tensors(_unwrap(read_pickle(path), path), path))


def _unwrap(document: object, path: Path) -> dict[str, Tensor]:
    from torch import Tensor

    for wrapper in WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
            break
    tensors = {k: v for k, v in document.items() if isinstance(v, Tensor)} if isinstance(document, Mapping) else {}
    if not tensors or not isinstance(document, Mapping):
        raise FlasharError(
            f"{path} holds no tensors at its top or under {', '.join(WRAPPERS)}; expected an upstream checkpoint"
        )
    others = [
        repr(name)[:80] for name, value in document.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others:
        raise FlasharError(f"{path} holds {', '.join(others[:5])} beside its tensors; expected tensors by name alone")
    return tensors
