"""The work folder of a run: what is made, batch by batch, until it is whole.

``OUT.part`` lies beside OUT (without OUT, beside the first file that is written) and holds ``settings.json``, all that
the images follow from; ``samples/``, which becomes OUT; ``pixels.npy``, where an archive is wanted; and ``done.jsonl``,
a line for each written batch with the SHA-256 of its bytes. A run that finds a folder of its own settings, after a
kill, a power cut or a full disk, makes what is missing or damaged there. Several processes of a run write into one
folder: the first opens it, the others join.

Letters: B images of a batch, H grid rows, W grid columns; h, w pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.data.images import TEXT_KEY, png_bytes
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import ANYTHING, JSON_LINES, NPY, NPZ, PNG_SIGNATURE, FolderKind, begins_with, json_object
from flashar_cli.files.writing import atomic_file, empty_folder, lock, parents_of, remove_folder, share_lock
from flashar_cli.generation.arrays import ArrayFile
from flashar_cli.generation.layout import FLAT_IMAGE, GENEVAL_FOLDER, GENEVAL_IMAGE, GENEVAL_METADATA, Layout
from flashar_cli.machine.memory import require_disk

SAMPLES, TOKENS, PIXELS, SETTINGS, DONE = "samples", "tokens.npy", "pixels.npy", "settings.json", "done.jsonl"
MAPS = "tokens.npz"
CONTACT_SHEET = "contact-sheet.png"
FILE_BYTES = 4096  # a PNG file takes one block of a disk at least
_IMAGE = rf"{FLAT_IMAGE}|{GENEVAL_IMAGE}|contact-sheet\.png"
_OURS = begins_with("a PNG image of flashar", PNG_SIGNATURE, TEXT_KEY.encode() + b"\0")
SAMPLE_FOLDER = FolderKind(
    "samples",
    {r"tokens\.npy": NPY, r"tokens\.npz": NPZ, _IMAGE: _OURS, GENEVAL_FOLDER: ANYTHING, GENEVAL_METADATA: JSON_LINES},
)
WORK_FOLDER = FolderKind(
    "a run of `flashar generate`",
    {
        r"settings\.json": json_object("settings", "seed", "batch_size"),
        r"done\.jsonl": JSON_LINES,
        r"pixels\.npy|(samples/)?tokens\.npy": NPY,
        # The last ones may be torn by a kill.
        rf"samples/(tokens\.npz|{_IMAGE}|{GENEVAL_FOLDER}|{GENEVAL_METADATA})?": ANYTHING,
        r"\.(settings\.json|done\.jsonl)\.[0-9a-f]{8}\.flashar-tmp": ANYTHING,
    },
)


@dataclass(frozen=True)
class TokenArray:
    """The tokens of one image. Those that are several maps one after the other are split when all are made."""

    shape: tuple[int, ...]
    dtype: type[np.integer]
    is_split: bool


class Store:
    """The work folder of a run. ``settings`` is what every written byte follows from; ``sides`` (h, w) where
    images go into the archive's array; ``layout``: of those in files, None where there are none. A process that
    ``joins`` takes the folder as the first one has opened it, once that one has let others ``share`` it.

    Raises FlasharError where the folder is of other settings, unless ``overwrite``; where another run works in it;
    and where the disk is too small.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        num_images: int,
        batch_size: int,
        tokens: TokenArray,
        sides: tuple[int, int] | None,
        layout: Layout | None,
        overwrite: bool,
        joins: bool = False,
    ) -> None:
        self.folder, self.samples, self.num_images, self.batch_size = folder, folder / SAMPLES, num_images, batch_size
        self._layout = layout
        self._done: dict[int, str] = {}
        self._writing = threading.Lock()
        with parents_of(folder / SETTINGS), ExitStack() as opened:
            descriptor = lock(folder, shared=joins)
            if descriptor is None:
                raise FlasharError(f"{folder} is in use: another process is making these images; wait for it")
            self._lock = descriptor
            opened.callback(os.close, descriptor)
            if not joins:
                self._done = self._prepare(settings, tokens, sides, overwrite)
                opened.callback(lambda: None if _read_done(folder) else self.remove())
            self.samples.mkdir(exist_ok=True)
            self.tokens = (folder if tokens.is_split else self.samples) / TOKENS
            self._tokens = ArrayFile(self.tokens, (num_images, *tokens.shape), tokens.dtype)
            opened.callback(self._tokens.close)
            self._pixels = None if sides is None else ArrayFile(folder / PIXELS, (num_images, *sides, 3), np.uint8)
            if self._pixels is not None:
                opened.callback(self._pixels.close)
            if not joins:
                self._done = {index: sha256 for index, sha256 in self._done.items() if self._digest(index) == sha256}
                with atomic_file(folder / DONE) as file:  # without lines that are torn or don't hold
                    file.write("".join(_line(*entry) for entry in self._done.items()).encode())
            self._opened = opened.pop_all()

    def _prepare(
        self, settings: dict[str, Any], tokens: TokenArray, sides: tuple[int, int] | None, overwrite: bool
    ) -> dict[int, str]:
        """Makes the folder one of these settings, where it is not; returns what it says is done."""
        if has_settings(self.folder, settings):
            return _read_done(self.folder)
        if not overwrite:
            refuse_other(self.folder, settings)
        self._refuse_full(8 * int(np.prod(tokens.shape)) + 6 * int(np.prod(sides or 0)))
        empty_folder(self.folder, WORK_FOLDER)
        with atomic_file(self.folder / SETTINGS) as file:
            file.write(json.dumps(settings, indent=2).encode())
        return {}

    def share(self) -> None:
        """Lets other processes join."""
        share_lock(self._lock)

    @property
    def num_batches(self) -> int:
        return -(-self.num_images // self.batch_size)

    def missing(self) -> Iterator[int]:
        """Batches that are still to be made, in order."""
        return (index for index in range(self.num_batches) if index not in self._done)

    def num_done(self) -> int:
        """Images that are written."""
        return sum(self.count(index) for index in self._done)

    def image_path(self, index: int) -> Path:
        """Where image ``index`` is written."""
        assert self._layout is not None, "this run writes no files of images"
        return self.samples / self._layout.name(index, self.num_images)

    def write(
        self, index: int, tokens: NDArray[np.integer], images: NDArray[np.uint8] | None, texts: Sequence[dict[str, Any]]
    ) -> None:
        """Writes batch ``index``: tokens [B, ..], images uint8 [B, h, w, 3] and the texts of their files, [B].
        Several threads may write at once. Raises OSError.
        """
        first = index * self.batch_size
        self._tokens.write(first, tokens)
        digest = hashlib.sha256(tokens.tobytes())
        if images is not None and self._pixels is not None:
            self._pixels.write(first, images)
            digest.update(images.tobytes())
        if images is not None and self._layout is not None:
            for offset, (image, text) in enumerate(zip(images, texts, strict=True)):
                content, path = png_bytes(image, text), self.image_path(first + offset)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                digest.update(content)
        with self._writing, open(self.folder / DONE, "a", encoding="utf-8") as file:
            file.write(_line(index, digest.hexdigest()))
            self._done[index] = digest.hexdigest()

    def settle(self) -> None:
        """Adds what the layout has beside images, and has the disk keep what is done, before anything leaves the
        folder: ``is_whole`` relies on it.
        """
        for name, content in (self._layout.documents() if self._layout else {}).items():
            (self.samples / name).write_bytes(content)
        with open(self.folder / DONE, "rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files; the folder is free for another process. Where nothing is done, it is removed."""
        self._opened.close()

    def remove(self) -> None:
        """Removes the folder."""
        remove_folder(self.folder, WORK_FOLDER)

    def _refuse_full(self, image_bytes: int) -> None:
        """Raises FlasharError where the disk has no room for the arrays and the files."""
        each = image_bytes + (FILE_BYTES if self._layout else 0)
        require_disk(f"writing {self.num_images} images (--num-images)", self.num_images * each, self.folder)

    def count(self, index: int) -> int:
        """Images of a batch."""
        return min(self.batch_size, self.num_images - index * self.batch_size)

    def _digest(self, index: int) -> str | None:
        """SHA-256 of what the folder holds of a batch, None where some of it is missing."""
        first, count = index * self.batch_size, self.count(index)
        if count <= 0:
            return None
        digest = hashlib.sha256(self._tokens.read(first, count).tobytes())
        if self._pixels is not None:
            digest.update(self._pixels.read(first, count).tobytes())
        try:
            for number in range(first, first + count) if self._layout else ():
                digest.update(self.image_path(number).read_bytes())
        except FileNotFoundError:
            return None
        return digest.hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether a work folder says that all of its batches are written."""
    settings = _read_settings(folder) or {}
    try:
        return len(_read_done(folder)) == -(-settings["num_images"] // settings["batch_size"])
    except (KeyError, TypeError, ZeroDivisionError):
        return False


def _line(index: int, sha256: str) -> str:
    return json.dumps({"batch": index, "sha256": sha256}) + "\n"


def _read_done(folder: Path) -> dict[int, str]:
    """Batch numbers and their SHA-256; torn lines are left out."""
    lines = (folder / DONE).read_text(encoding="utf-8", errors="replace") if (folder / DONE).is_file() else ""
    found = re.findall(r'^\{"batch": (\d{1,15}), "sha256": "([0-9a-f]{64})"\}$', lines, re.MULTILINE)
    return {int(index): sha256 for index, sha256 in found}


def _read_settings(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def has_settings(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a work folder is of these settings."""
    return _read_settings(folder) == json.loads(json.dumps(settings))


def refuse_other(folder: Path, settings: dict[str, Any]) -> None:
    """Raises FlasharError where a work folder is of other settings."""
    known, wanted = _read_settings(folder), json.loads(json.dumps(settings))
    if known is not None and known != wanted:
        different = [key for key in wanted | known if known.get(key) != wanted.get(key)]
        raise FlasharError(
            f"{folder} is what an interrupted run with other settings has made ({', '.join(different)} differ); type "
            "that command again to go on with it, choose another --out, or pass --overwrite to drop it"
        )
