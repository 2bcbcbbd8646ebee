"""Writing that is either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flashar_cli.errors import FlasharError


def refuse_unwritable(path: Path, option: str = "--out") -> None:
    """Raises FlasharError where nothing can be created at ``path``: asked before long work, not after it."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise FlasharError(f"{option} {path}: {parent} is a file; expected a directory")
    if not os.access(parent, os.W_OK):
        raise FlasharError(f"{option} {path}: {parent} is not writable; choose another place")


def refuse_existing(path: Path, overwrite: bool, option: str = "--out") -> None:
    """Raises FlasharError where an output file exists already or can't be created."""
    if path.is_dir():
        raise FlasharError(f"{option} {path} is a directory; expected a file")
    if path.exists() and not overwrite:
        raise FlasharError(f"{option} {path} exists; choose another file or pass --overwrite")
    refuse_unwritable(path, option)


def refuse_nonempty(directory: Path, overwrite: bool) -> None:
    """Raises FlasharError where an output directory already holds something or can't be created."""
    refuse_unwritable(directory)
    if directory.exists() and not directory.is_dir():
        raise FlasharError(f"--out {directory} is a file; expected a directory")
    if directory.is_dir() and any(directory.iterdir()) and not overwrite:
        raise FlasharError(f"--out {directory} is not empty; choose another directory or pass --overwrite")


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory beside ``directory``; on success it is fsynced and takes its place, else it is removed.

    Raises FlasharError where the disk refuses.
    """
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                path.chmod(0o644)
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        temporary.chmod(0o755)
        _replace_directory(temporary, directory)
    except OSError as error:
        raise FlasharError(
            f"{directory} could not be written: {error.strerror or error}; nothing was changed"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name once it is whole. Raises FlasharError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FlasharError(f"{path} could not be written: {error.strerror or error}; nothing was changed") from None
    finally:
        with suppress(OSError):  # where the parent is no directory, there is nothing to clean up either
            temporary.unlink()


def _replace_directory(new: Path, old: Path) -> None:
    """Puts ``new`` in the place of ``old``; where that fails midway, ``old`` is put back."""
    if not old.exists():
        new.rename(old)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old.", dir=old.parent)) / "previous"
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)
