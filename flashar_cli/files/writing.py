"""Writes files and folders whole or not at all, and replaces only what is of the same kind.

They are written under a hidden temporary name beside their place and renamed when they are whole. The writer holds a
lock on the temporary, which ends with its process. So a temporary that can be locked was left by a killed run, and the
next run removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import FileKind, FolderKind

_TEMPORARY, _PREVIOUS = ".flashar-tmp", ".flashar-old"
_KEPT_OF_NAME = 40  # characters: with what is added, a name stays below the 255 bytes that file systems allow


def refuse_unwritable(path: Path, option: str = "--out") -> None:
    """Raises FlasharError where nothing can be created at ``path``, before long work rather than after it."""
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise FlasharError(f"{option} {path}: {parent} is a file; expected a directory")
    if not os.access(parent, os.W_OK):
        raise FlasharError(f"{option} {path}: {parent} is not writable; choose another place")


def refuse_file(path: Path, kind: FileKind, overwrite: bool, option: str = "--out") -> None:
    """Raises FlasharError where a file can't be written to ``path`` or must not replace what is there."""
    if path.is_symlink():
        raise FlasharError(f"{option} {path} is a link; pass the file it stands for, or another name")
    if path.is_dir():
        raise FlasharError(f"{option} {path} is a directory; expected a file")
    if path.exists() and not path.is_file():
        raise FlasharError(f"{option} {path} is no regular file; choose another name")
    if path.exists() and not kind.recognises(path):
        raise FlasharError(f"{option} {path} exists and is not {kind.noun}; choose another name")
    if path.exists() and not overwrite:
        raise FlasharError(f"{option} {path} exists; choose another file or pass --overwrite")
    refuse_unwritable(path, option)


def refuse_folder(path: Path, kind: FolderKind, overwrite: bool, option: str = "--out") -> None:
    """Raises FlasharError where a folder can't be written to ``path`` or must not replace what is there: a folder that
    is needed elsewhere, or that has anything else in it than this kind.
    """
    if path.is_symlink():
        raise FlasharError(f"{option} {path} is a link; pass the directory it stands for, or another name")
    if path.exists() and not path.is_dir():
        raise FlasharError(f"{option} {path} is a file; expected a directory")
    if needed := _needed_for(path):
        raise FlasharError(f"{option} {path} is {needed}; choose a directory of its own inside it")
    if path.is_dir() and any(path.iterdir()):
        foreign = kind.foreign(path)
        if foreign is not None:
            raise FlasharError(
                f"{option} {path} is not empty, and {foreign} in it is no part of {kind.noun}; choose another directory"
            )
        if not overwrite:
            raise FlasharError(f"{option} {path} is not empty; choose another directory or pass --overwrite")
    refuse_unwritable(path, option)


def _needed_for(path: Path) -> str | None:
    """What a folder is needed for, so that no command may replace it; None where it is not."""
    real = path.resolve()
    places = {"the working directory": Path.cwd()}
    with suppress(RuntimeError):  # no home
        places["your home directory"] = Path.home()
    for what, place in places.items():
        place = place.resolve()
        if place.is_relative_to(real):
            return what if place == real else f"above {what}"
    if path.name in ("", ".."):
        return "named by its parent"
    return "a mounted file system" if os.path.ismount(real) else None


@contextmanager
def atomic_directory(directory: Path, kind: FolderKind, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside ``directory``; on success it is fsynced and takes its place, else it is removed.

    Raises FlasharError where the disk refuses, and as ``refuse_folder``, which is asked again after the work: what has
    come into ``directory`` meanwhile is not replaced either.
    """
    refuse_folder(directory, kind, overwrite)
    with ExitStack() as stack:
        try:
            stack.enter_context(parents_of(directory))
            remove_stale(directory)
            temporary, descriptor = _new_temporary(directory, is_folder=True)
            stack.callback(os.close, descriptor)
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            yield temporary
            publish_directory(temporary, directory, kind, overwrite)
        except OSError as error:
            raise _not_written(directory, error) from None


def publish_directory(temporary: Path, directory: Path, kind: FolderKind, overwrite: bool) -> None:
    """Puts a finished folder in the place of ``directory``, fsynced; links in it and what they stand for stay as they
    are. Raises as ``refuse_folder``.
    """
    for path in sorted(temporary.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            path.chmod(0o644)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    temporary.chmod(0o755)
    refuse_folder(directory, kind, overwrite)
    if not directory.exists():
        temporary.rename(directory)
        return
    previous = directory.with_name(_hidden_name(directory, _PREVIOUS))
    directory.rename(previous)
    try:
        temporary.rename(directory)
    except BaseException:
        previous.rename(directory)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def empty_folder(folder: Path, kind: FolderKind) -> None:
    """Removes all that is in a folder of this kind. A folder with anything else in it stays as it is."""
    if folder.is_dir() and not folder.is_symlink() and kind.foreign(folder) is None:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_folder(folder: Path, kind: FolderKind) -> None:
    """Removes a folder of this kind. A folder with anything else in it stays as it is."""
    empty_folder(folder, kind)
    with suppress(OSError):  # it is not empty, or has gone
        folder.rmdir()


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that gets its name when it is whole. Raises FlasharError where the disk refuses."""
    with atomic_files(path) as (file,):
        yield file


@contextmanager
def atomic_files(*paths: Path) -> Iterator[Sequence[IO[bytes]]]:
    """Several binary files that get their names when all are whole. Raises as ``atomic_file``."""
    current = paths[0]
    with ExitStack() as stack:
        try:
            files, temporaries = [], []
            for current in paths:
                stack.enter_context(parents_of(current))
                remove_stale(current)
                temporary, descriptor = _new_temporary(current, is_folder=False)
                stack.callback(temporary.unlink, missing_ok=True)
                temporaries.append(temporary)
                files.append(stack.enter_context(os.fdopen(descriptor, "w+b")))
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            for current, temporary in zip(paths, temporaries, strict=True):
                temporary.replace(current)
        except OSError as error:
            raise _not_written(current, error) from None


def remove_stale(path: Path) -> None:
    """Removes what killed runs left beside ``path``. Where a run was killed while it replaced an old folder by a new
    one, the old one is put back.
    """
    hidden = re.compile(rf"\.{re.escape(path.name[:_KEPT_OF_NAME])}\.[0-9a-f]{{8}}({_TEMPORARY}|{_PREVIOUS})")
    with suppress(OSError):
        left = [entry for entry in path.parent.iterdir() if hidden.fullmatch(entry.name)]
        for entry in left:
            if entry.name.endswith(_PREVIOUS) and not path.exists():
                entry.rename(path)
                continue
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            finally:
                os.close(descriptor)


def lock(path: Path, shared: bool = False) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed, alone or with others that ask for a
    ``shared`` one; None where another process has it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        pass
    return descriptor


def share_lock(descriptor: int) -> None:
    """Lets other processes have the same lock, as a ``shared`` one."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def _new_temporary(target: Path, is_folder: bool) -> tuple[Path, int]:
    """A new hidden file or folder beside ``target`` and the open descriptor that holds its lock."""
    while True:
        path = target.with_name(_hidden_name(target, _TEMPORARY))
        if is_folder:
            path.mkdir()
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        with suppress(FileNotFoundError):  # another process took it for a stale one before it was locked
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
            with suppress(OSError):  # a file system without locks: nobody else gets one either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return path, descriptor
            except FileNotFoundError:
                os.close(descriptor)


def _hidden_name(path: Path, ending: str) -> str:
    return f".{path.name[:_KEPT_OF_NAME]}.{secrets.token_hex(4)}{ending}"


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """Makes the folders that ``path`` lies in; if the work fails, removes those that it made."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


def _not_written(path: Path, error: OSError) -> FlasharError:
    return FlasharError(f"{path} could not be written: {error.strerror or error}; nothing was changed")
