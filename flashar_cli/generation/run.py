"""From conditions to files: batches are sampled one after the other, written by threads, and published at the end."""

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

from flashar_cli.data.images import contact_sheet, read_png, write_png
from flashar_cli.decoding.images import sample_batch
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import NPY, NPZ, FileKind
from flashar_cli.files.writing import atomic_file, parents_of, publish_directory, refuse_file, remove_folder
from flashar_cli.generation.arrays import write_maps, write_npz
from flashar_cli.generation.job import GenerateJob
from flashar_cli.generation.store import (
    CONTACT_SHEET,
    MAPS,
    PIXELS,
    SAMPLE_FOLDER,
    SAMPLES,
    WORK_FOLDER,
    Store,
    has_settings,
    is_whole,
)
from flashar_cli.generation.targets import Targets
from flashar_cli.machine.processes import barrier, from_first
from flashar_cli.machine.world import current_world

MOST_WRITERS = 4  # threads that compress PNG files
SHEET_IMAGES = 100


@dataclass(frozen=True)
class Made:
    """What this call has made, in which time; the other images were there already."""

    num_images: int
    seconds: float

    def summary(self, job: GenerateJob, targets: Targets) -> dict[str, Any]:
        """For ``--json``."""
        speed = self.num_images / self.seconds if self.num_images else None
        return {
            **job.settings,
            "num_images": job.request.num_images,
            "num_made": self.num_images,
            "optimisation": job.engine.optimisation,
            "forwards_per_image": job.request.decoder.num_forwards(job.engine.model.config, job.request.grid),
            "time_s": round(self.seconds, 4),
            "images_per_s": None if speed is None else round(speed, 4),
            "written": [str(path) for path in targets.all],
        }

    def in_words(self, job: GenerateJob, targets: Targets) -> str:
        """For people."""
        total, decoder = job.request.num_images, job.request.decoder
        count = f"{total} images" if self.num_images == total else f"{self.num_images} of {total} images"
        speed = f" in {self.seconds:.2f} s ({self.num_images / self.seconds:.2f} images/s)" if self.num_images else ""
        forwards = decoder.num_forwards(job.engine.model.config, job.request.grid)
        each = "" if forwards is None else f", {forwards} forwards each"
        return f"{decoder.name}: {count}{speed}{each}; wrote {', '.join(map(str, targets.all))}"


def generate(
    job: GenerateJob,
    targets: Targets,
    overwrite: bool,
    begin: Callable[[int], Callable[[int], None]],
    note: Callable[[str], None] = lambda line: None,
) -> Made:
    """Makes what the work folder lacks and puts the results in their places. The processes of a process group share
    the batches; the first opens the folder, waits for the others and puts the results in their places. ``begin`` gets
    the number of images that this process is to make and returns what is called with the size of each batch; ``note``
    gets a line where a run goes on.

    Raises FlasharError for conditions that don't fit the model, before anything is sampled, and where the disk refuses;
    what is done by then stays in the work folder for the next run.
    """
    job.request.check(job.engine.model)
    with parents_of(targets.work):
        try:
            if not current_world().is_main:
                return _join(job, targets, begin)
            return _lead(job, targets, overwrite, begin, note)
        except OSError as error:
            raise FlasharError(
                f"{error.filename or targets.work} could not be written: {error.strerror or error}; what is made by "
                f"now stays in {targets.work}, and the same command goes on with it"
            ) from None


def _lead(
    job: GenerateJob,
    targets: Targets,
    overwrite: bool,
    begin: Callable[[int], Callable[[int], None]],
    note: Callable[[str], None],
) -> Made:
    """The part of the first process."""
    request, settings = job.request, identity(job, targets)
    if _is_published(targets, settings):
        from_first(None)
        remove_folder(targets.work, WORK_FOLDER)
        return Made(0, 0.0)
    with closing(_open(job, targets, settings, overwrite)) as store:
        missing, num_done = list(store.missing()), store.num_done()
        if num_done:
            note(f"going on with {targets.work}: {num_done} of {request.num_images} images are made")
        store.share()
        started = time.perf_counter()
        _sample(job, targets, store, from_first(missing), begin)
        barrier()
        made = Made(request.num_images - num_done, time.perf_counter() - started)
        _publish(job, targets, store, overwrite)
        store.remove()
    return made


def _join(job: GenerateJob, targets: Targets, begin: Callable[[int], Callable[[int], None]]) -> Made:
    """The part of each other process."""
    missing: list[int] | None = from_first([])
    if missing is None:
        return Made(0, 0.0)
    started = time.perf_counter()
    with closing(_open(job, targets, {}, False, joins=True)) as store:
        num_images = _sample(job, targets, store, missing, begin)
    barrier()
    return Made(num_images, time.perf_counter() - started)


def _open(job: GenerateJob, targets: Targets, settings: dict[str, Any], overwrite: bool, joins: bool = False) -> Store:
    return Store(
        targets.work,
        settings,
        job.request.num_images,
        job.request.batch_size,
        job.tokens,
        job.sides if targets.npz is not None else None,
        targets.layout if targets.out is not None and targets.with_images else None,
        overwrite,
        joins,
    )


def _sample(
    job: GenerateJob,
    targets: Targets,
    store: Store,
    missing: list[int],
    begin: Callable[[int], Callable[[int], None]],
) -> int:
    """Samples this process's share of the missing batches while threads write those before them; returns the number of
    their images.
    """
    world = current_world()
    mine = missing[world.rank :: world.size]
    num_images = sum(store.count(index) for index in mine)
    progress = begin(num_images)
    num_writers = min(MOST_WRITERS, os.cpu_count() or 1)
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(num_writers, thread_name_prefix="write") as pool:
        for index in mine:
            tokens = sample_batch(job.engine, job.request, index)
            images = job.images(tokens) if targets.with_images else None
            first, count = index * job.request.batch_size, len(tokens)
            texts = [job.image_settings(number) for number in range(first, first + count)]
            writing.append(pool.submit(store.write, index, tokens.cpu().numpy(), images, texts))
            if len(writing) > num_writers:  # so that memory does not grow where the disk is slower than the model
                writing.popleft().result()
            progress(count)
        while writing:
            writing.popleft().result()
    return num_images


def _publish(job: GenerateJob, targets: Targets, store: Store, overwrite: bool) -> None:
    """Puts files and folder in their places, the folder last: with it the run is done."""
    store.settle()
    if targets.tokens_out is not None:
        if maps := job.token_maps:
            _publish_file(targets.tokens_out, NPZ, partial(write_maps, store.tokens, maps), overwrite)
        else:
            with open(store.tokens, "rb") as tokens:
                _publish_file(targets.tokens_out, NPY, partial(shutil.copyfileobj, tokens), overwrite)
    if targets.npz is not None:
        _publish_file(targets.npz, NPZ, partial(write_npz, store.folder / PIXELS), overwrite)
    if targets.out is not None:
        if maps := job.token_maps:
            with open(store.samples / MAPS, "wb") as file:
                write_maps(store.tokens, maps, file)
        if targets.with_images:
            shown = range(min(SHEET_IMAGES, job.request.num_images))
            sheet = contact_sheet(np.stack([read_png(store.image_path(index)) for index in shown]))
            write_png(store.samples / CONTACT_SHEET, sheet, job.settings)
        publish_directory(store.samples, targets.out, SAMPLE_FOLDER, overwrite)


def _publish_file(path: Path, kind: FileKind, write: Callable[[IO[bytes]], object], overwrite: bool) -> None:
    """Writes a file. Unless ``overwrite``, raises FlasharError for one that is there with other bytes: with the same
    ones it may be of an earlier call of this run, which was interrupted.
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


def identity(job: GenerateJob, targets: Targets) -> dict[str, Any]:
    """What the written bytes follow from, which must be the same for a run to go on."""
    conditions = hashlib.sha256(json.dumps(job.names).encode())
    for tensor in job.request.conditions.tensors.values():
        conditions.update(tensor.detach().cpu().float().numpy().tobytes())
    return {
        **job.settings,
        **job.sources,
        "conditions": conditions.hexdigest(),
        "num_images": job.request.num_images,
        "batch_size": job.request.batch_size,
        "optimisation": job.engine.optimisation,
        "outputs": [name for name in ("out", "tokens_out", "npz") if getattr(targets, name) is not None],
        "with_images": targets.with_images,
        "layout": targets.layout.identity(),
    }


def _is_published(targets: Targets, settings: dict[str, Any]) -> bool:
    """Whether an earlier call was ended when OUT was in its place and only the work folder was left to remove."""
    if targets.out is None or not targets.out.is_dir() or (targets.work / SAMPLES).exists():
        return False
    return is_whole(targets.work) and has_settings(targets.work, settings)
