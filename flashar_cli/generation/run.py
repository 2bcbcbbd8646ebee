"""From conditions to files: batches are drawn one after the other, written by threads, and published at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from flashar_cli.api import ImageModel
from flashar_cli.data.pictures import contact_sheet, read_png, write_png
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.generate import check_request, draw_batch
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file, parents_of, publish_directory, refuse_file, remove_folder
from flashar_cli.generation.arrays import write_npz
from flashar_cli.generation.store import (
    CONTACT_SHEET,
    PIXELS,
    SAMPLE_FOLDER,
    SAMPLES,
    TOKENS,
    WORK_FOLDER,
    Store,
    has_settings,
    is_whole,
)
from flashar_cli.generation.targets import Targets
from flashar_cli.grid import Order
from flashar_cli.kinds import NPY, NPZ, FileKind
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams

MOST_WRITERS = 4  # threads that compress PNG files
SHEET_PICTURES = 100


@dataclass(frozen=True)
class GenerateJob:
    """What to draw: picture k under condition ``k mod len(conditions)``, which ``captions`` say in words. Each
    picture's file holds ``settings``; ``sources`` is what else they follow from, for a run that goes on later.
    """

    loaded: ImageModel
    engine: Engine
    conditions: Conditions
    captions: list[str]
    num_images: int
    order: Order
    params: SamplingParams
    seed: int
    batch_size: int
    settings: dict[str, Any]
    sources: dict[str, Any]

    def picture_settings(self, index: int) -> dict[str, Any]:
        """What the file of picture ``index`` says of itself."""
        return {**self.settings, "image": index, "shows": self.captions[index % len(self.captions)]}


@dataclass(frozen=True)
class Made:
    """What this run has drawn, and how long that and the writing took; the others were there already."""

    num_images: int
    seconds: float


def generate(
    job: GenerateJob, targets: Targets, overwrite: bool, begin: Callable[[int], Callable[[int], None]]
) -> Made:
    """Draws what the work folder lacks and puts the results in their places. ``begin`` gets the number of pictures that
    are to be drawn and returns what is told how many of them are.

    Raises FlasharError for conditions that don't fit the model, before anything is drawn, and where the disk refuses;
    what is done by then stays in the work folder for the next run.
    """
    check_request(job.loaded.model, job.conditions, job.num_images, job.order, job.params, job.batch_size)
    settings = _identity(job, targets)
    if _is_published(targets, settings):
        remove_folder(targets.work, WORK_FOLDER)
        return Made(0, 0.0)
    vq, grid = job.loaded.config.tokenizer, job.loaded.config.grid
    sides = None if vq is None else (grid.height * vq.downsample, grid.width * vq.downsample)
    with parents_of(targets.work):
        try:
            store = Store(
                targets.work,
                settings,
                job.num_images,
                job.batch_size,
                (grid.height, grid.width),
                sides if targets.npz is not None else None,
                targets.out is not None and targets.with_pictures,
                overwrite,
            )
            with closing(store):
                missing = job.num_images - store.num_done()
                started = time.perf_counter()
                _draw(job, targets, store, begin(missing))
                made = Made(missing, time.perf_counter() - started)
                _publish(job, targets, store, overwrite)
                store.remove()
        except OSError as error:
            raise FlasharError(
                f"{error.filename or targets.work} could not be written: {error.strerror or error}; what is made by "
                f"now stays in {targets.work}, and the same command goes on with it"
            ) from None
    return made


def _draw(job: GenerateJob, targets: Targets, store: Store, progress: Callable[[int], None]) -> None:
    """Draws the missing batches while threads write those before them."""
    num_writers = min(MOST_WRITERS, os.cpu_count() or 1)
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(num_writers, thread_name_prefix="write") as pool:
        for index in store.missing():
            codes = draw_batch(
                job.engine, job.conditions, job.num_images, job.order, job.params, job.seed, job.batch_size, index
            )
            pictures = job.loaded.drawn_pictures(codes, job.engine) if targets.with_pictures else None
            first, count = index * job.batch_size, len(codes)
            texts = [job.picture_settings(number) for number in range(first, first + count)]
            writing.append(pool.submit(store.write, index, codes.cpu().numpy(), pictures, texts))
            if len(writing) > num_writers:  # memory stays level where the disk is slower than the model
                writing.popleft().result()
            progress(count)
        while writing:
            writing.popleft().result()


def _publish(job: GenerateJob, targets: Targets, store: Store, overwrite: bool) -> None:
    """Puts files and folder in their places, the folder last: with it the run is done."""
    store.settle()
    if targets.tokens_out is not None:
        with open(store.samples / TOKENS, "rb") as tokens:
            _publish_file(targets.tokens_out, NPY, partial(shutil.copyfileobj, tokens), overwrite)
    if targets.npz is not None:
        _publish_file(targets.npz, NPZ, partial(write_npz, store.folder / PIXELS), overwrite)
    if targets.out is not None:
        if targets.with_pictures:
            shown = range(min(SHEET_PICTURES, job.num_images))
            sheet = contact_sheet(np.stack([read_png(store.picture_path(index)) for index in shown]))
            write_png(store.samples / CONTACT_SHEET, sheet, job.settings)
        publish_directory(store.samples, targets.out, SAMPLE_FOLDER, overwrite)


def _publish_file(path: Path, kind: FileKind, write: Callable[[IO[bytes]], object], overwrite: bool) -> None:
    """Writes a file. One that is there already may be of this run, which was ended before it was done: then the bytes
    are the same. Raises FlasharError where they are not, unless ``overwrite``.
    """
    with atomic_file(path) as file:
        write(file)
        refuse_file(path, kind, overwrite or _has_bytes(path, file), "the output")


def _has_bytes(path: Path, file: IO[bytes]) -> bool:
    """Whether ``path`` is a file with the bytes that were written to ``file``."""
    if not path.is_file() or path.stat().st_size != file.tell():
        return False
    file.seek(0)
    with open(path, "rb") as other:
        while piece := file.read(1 << 20):
            if piece != other.read(1 << 20):
                return False
    return True


def _identity(job: GenerateJob, targets: Targets) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    conditions = hashlib.sha256(json.dumps(job.captions).encode())
    for tensor in (job.conditions.labels, job.conditions.features, job.conditions.mask):
        if tensor is not None:
            conditions.update(tensor.detach().cpu().float().numpy().tobytes())
    return {
        **job.settings,
        **job.sources,
        "conditions": conditions.hexdigest(),
        "num_images": job.num_images,
        "batch_size": job.batch_size,
        "optimisation": job.engine.optimisation,
        "outputs": [name for name in ("out", "tokens_out", "npz") if getattr(targets, name) is not None],
        "with_pictures": targets.with_pictures,
    }


def _is_published(targets: Targets, settings: dict[str, Any]) -> bool:
    """Whether OUT is of these settings: a run was ended when it was there, and only the work folder not gone yet."""
    if targets.out is None or not targets.out.is_dir() or (targets.work / SAMPLES).exists():
        return False
    return is_whole(targets.work) and has_settings(targets.work, settings)
