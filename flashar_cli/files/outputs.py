"""Where a command may write: before any work, every command says once what it is going to write and read."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import FileKind, FolderKind
from flashar_cli.files.writing import refuse_file, refuse_folder, remove_stale
from flashar_cli.machine.world import current_world


@dataclass(frozen=True)
class Output:
    """A file or folder that a command writes. ``option`` names it in messages. ``goes_on``: what is there of this kind
    may be of the same run, which the command must find out.
    """

    option: str
    path: Path
    kind: FileKind | FolderKind
    goes_on: bool = False


def check_outputs(outputs: Sequence[Output], inputs: Mapping[str, Path | str | None], overwrite: bool) -> None:
    """Raises FlasharError where writing the outputs could lose something: where an output is, holds or lies inside an
    input or another output, under whatever name, or would replace what is not of its own kind.

    ``inputs`` maps names in messages to paths; paths that do not exist are ignored. Changes nothing, but removes what
    killed runs left of the same outputs. Of several processes only the first checks, as only it writes.
    """
    if not current_world().is_main:
        return
    given = {name: Path(path).expanduser() for name, path in inputs.items() if path is not None}
    read = {name: _Place(path) for name, path in given.items() if os.path.exists(path)}
    written: dict[str, _Place] = {}
    for output in outputs:
        option, path = output.option, output.path
        _refuse_name(option, path)
        place = _Place(path)
        for name, other in read.items():
            if relation := place.relation(other):
                raise FlasharError(f"{option} {path} {relation} {name}, which is read; choose another place")
        for name, other in written.items():
            if relation := place.relation(other, fold=True):
                raise FlasharError(f"{option} {path} {relation} {name}; give each a place of its own")
        written[option] = place
    for output in outputs:
        remove_stale(output.path)
        allowed = overwrite or output.goes_on
        if isinstance(output.kind, FolderKind):
            refuse_folder(output.path, output.kind, allowed, output.option)
        else:
            refuse_file(output.path, output.kind, allowed, output.option)


class _Place:
    """A path and each folder that it lies in, by name and by the file system's number."""

    def __init__(self, path: Path) -> None:
        real = Path(os.path.realpath(path))
        self._names = [str(place) for place in (real, *real.parents)]
        self._ids = [_identity(place) for place in (real, *real.parents)]

    def relation(self, other: _Place, fold: bool = False) -> str | None:
        """How this place conflicts with another. ``fold``: names that differ only in case, or in how an accent is
        written, count as the same, as they are to some file systems.
        """
        mine, theirs = (_folded(place._names) if fold else place._names for place in (self, other))
        if mine[0] == theirs[0] or (self._ids[0] is not None and self._ids[0] == other._ids[0]):
            return "is the same as"
        if theirs[0] in mine or (other._ids[0] is not None and other._ids[0] in self._ids):
            return "lies inside"
        if mine[0] in theirs or (self._ids[0] is not None and self._ids[0] in other._ids):
            return "holds"
        return None


def _folded(names: list[str]) -> list[str]:
    return [unicodedata.normalize("NFC", name).casefold() for name in names]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _refuse_name(option: str, path: Path) -> None:
    """Raises FlasharError for a path that no file can have."""
    reason = None
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError:  # NUL, or what is no text in the file system's encoding
        reason = "holds a character that no file name can have"
    except OSError as error:
        reason = "is too long a name" if error.errno == errno.ENAMETOOLONG else str(error.strerror)
    if reason:
        raise FlasharError(f"{option} {str(path)!r} {reason}; choose another name")
    gone = next((folder for folder in path.parents if folder.name == ".." and not folder.exists()), None)
    if gone is not None:
        raise FlasharError(f"{option} {path} goes through {gone}, which does not exist; leave the .. out")
