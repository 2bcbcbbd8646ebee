"""Images to token shards, by any number of processes, each of which may be killed at any moment.

Process ``s mod world size`` encodes shard s. A finished shard has its name and a small JSON record in a hidden folder;
the process that finds all records writes the manifest. So processes exchange no messages, and a finished shard is never
encoded again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from flashar_cli.data.conditions.base import FeatureWriter
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.encode_shard import WORK, Progress, encode_shard, prepared_or_bad, write_file
from flashar_cli.data.records import (
    MANIFEST,
    BadEntry,
    Counts,
    EncodeSettings,
    Manifest,
    OldManifest,
    ShardEntry,
    ShardRecord,
    read_manifest,
)
from flashar_cli.data.run_ahead import run_ahead
from flashar_cli.data.shards import is_intact
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import ANYTHING, PARQUET, SAFETENSORS, FolderKind, json_object
from flashar_cli.files.writing import atomic_file, empty_folder, parents_of, refuse_folder
from flashar_cli.inputs.reading import read_json
from flashar_cli.machine.world import World

# Finished, or under way with the hidden folder, in which all files are flashar's.
TOKEN_SHARDS = FolderKind(
    "token shards",
    {
        r"manifest\.json": json_object("a manifest", "format_version", "tokenizer_sha256", "shards"),
        r"codes-\d{5,}\.parquet": PARQUET,
        r"captions-\d{5,}\.safetensors": SAFETENSORS,
        rf"{re.escape(WORK)}/.*": ANYTHING,
    },
    needs=(MANIFEST, f"{WORK}/"),
)

PLAN = "plan.json"
WorkT = TypeVar("WorkT", EncodeSettings, ShardRecord)
POLL_S = 0.1
START_TIMEOUT_S = 600.0  # how long the other processes wait for the first to prepare the folder


@dataclass(frozen=True)
class Encoded:
    """What a run of `flashar encode` did: it encoded ``num_images`` missing images in ``seconds``."""

    out: Path
    manifest: Manifest
    num_images: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """In JSON."""
        rate = self.num_images / self.seconds
        done = {"encoded": self.num_images, "seconds_s": self.seconds, "images_per_s": rate}
        counts = self.manifest.counts.model_dump()
        return {"out": str(self.out), **counts, "shards": len(self.manifest.shards), **done}

    def in_words(self) -> str:
        """On one line."""
        counts = self.manifest.counts
        if not self.num_images:
            return f"{self.out} holds these {counts.pictures} images already; nothing was done"
        skipped = f", {counts.bad} bad ones skipped" if counts.bad else ""
        speed = f"{self.num_images} images in {self.seconds:.1f} s, {self.num_images / self.seconds:.1f} images/s"
        return f"wrote {self.out}: {counts.pictures} images, {counts.views} views{skipped}; {speed}"


def encode_and_wait(
    job: EncodeJob, out: Path, missing: int, world: World, overwrite: bool, progress: Progress
) -> Encoded | None:
    """Encodes the ``missing`` images as ``encode``. The first process waits for the others and returns the result; they
    return None.
    """
    started = time.perf_counter()
    encode(job, out, world, overwrite, progress)
    if not world.is_main:
        return None
    manifest = wait_for_manifest(job, out)
    return Encoded(out, manifest, missing, time.perf_counter() - started)


def encode(job: EncodeJob, out: Path, world: World, overwrite: bool = False, progress: Progress | None = None) -> int:
    """Encodes this process's shards that are not in ``out`` yet; returns the number of their images. The last of all
    processes writes the manifest; ``wait_for_manifest`` waits for it.

    Raises FlasharError where ``out`` holds other files, for more bad images than the job allows, and where none is
    good. After an error or an interruption ``out`` holds the finished shards; it is removed where there are none.
    """
    mine = _missing(job, out, world)
    # Before anything is written: the text encoder may not be there.
    features = job.conditions.feature_writer(job.device, job.batch_size) if mine else None
    with _swept(out, world):
        _prepare(job, out, world, overwrite)
        if mine:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="PIL")  # bad images are counted instead
                _encode_shards(job, out, mine, features, progress or (lambda count: None))
        _finish(job, out)
    return sum(len(job.shard_rows(shard)) for shard in mine)


def wait_for_manifest(job: EncodeJob, out: Path) -> Manifest:
    """Waits until all processes are done and returns the manifest. Raises FlasharError for too many bad images."""
    while not _finish(job, out):
        time.sleep(POLL_S)
    manifest = read_manifest(out)
    if not isinstance(manifest, Manifest):
        raise FlasharError(f"{out / MANIFEST} was replaced by another one meanwhile; encode into a new --out")
    return manifest


def count_missing(job: EncodeJob, out: Path) -> int:
    """Images that no process has encoded yet."""
    return sum(len(job.shard_rows(shard)) for shard in _missing(job, out, World()))


@contextlib.contextmanager
def _swept(out: Path, world: World) -> Iterator[None]:
    """Where the work fails before an image is encoded, this removes what it wrote. Several processes leave that to the
    next run, as none knows what the others still write.
    """
    was_there = out.is_dir()
    with parents_of(out):
        try:
            yield
        except BaseException:
            records = [_work(path, ShardRecord) for path in (out / WORK).glob("[0-9]*.json")]
            useful = (out / MANIFEST).exists() or any(record and record.rows for record in records)
            if world.size == 1 and not useful:
                empty_folder(out, TOKEN_SHARDS)
                if not was_there:
                    with contextlib.suppress(OSError):
                        out.rmdir()
            raise


def _prepare(job: EncodeJob, out: Path, world: World, overwrite: bool) -> None:
    """Makes ``out`` the folder of this job where it is not; the first process does, the others wait for it."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (changed := _differences(job, out)) != []:
        if changed and not overwrite:
            raise FlasharError(
                f"--out {out} holds tokens made otherwise ({'; '.join(changed)}); choose another directory "
                "or pass --overwrite"
            )
        if world.is_main:
            # A folder of this kind without a plan holds nothing of value.
            refuse_folder(out, TOKEN_SHARDS, overwrite or changed is None)
            empty_folder(out, TOKEN_SHARDS)  # and not replaced, as the other processes read it
            with atomic_file(out / WORK / PLAN) as file:
                file.write(job.settings.model_dump_json(exclude_unset=True).encode())
        elif time.monotonic() > deadline:
            raise FlasharError(f"process 0 has not prepared {out} in {START_TIMEOUT_S:.0f} s; is it running?")
        else:
            time.sleep(POLL_S)


def _differences(job: EncodeJob, out: Path) -> list[str] | None:
    """How the tokens of ``out`` differ from the job: [] where they are of this job; None where there are none."""
    try:
        # The manifest twice, as it may replace the plan in between.
        found = _manifest(out) or _work(out / WORK / PLAN, EncodeSettings) or _manifest(out)
    except FlasharError as error:
        return [str(error)]
    if found is None:
        return None
    theirs = {} if isinstance(found, OldManifest) else found.document()
    changed = [key for key, value in job.settings.document().items() if theirs.get(key) != value]
    return [f"{', '.join(changed)} differ"] if changed else []


def _manifest(out: Path) -> Manifest | OldManifest | None:
    """The manifest, where there is one. Raises FlasharError for an invalid one."""
    return read_manifest(out) if (out / MANIFEST).exists() else None


def _work(path: Path, model: type[WorkT]) -> WorkT | None:
    """A document of the hidden folder; None where it is missing or invalid, so that its work is done again."""
    try:
        return model.model_validate(read_json(path))
    except (FlasharError, ValidationError):
        return None


def _record_path(out: Path, shard: int) -> Path:
    return out / WORK / f"{shard:05d}.json"


def _missing(job: EncodeJob, out: Path, world: World) -> list[int]:
    """Shards of this process that are not finished, or whose files have changed since; all of its shards where ``out``
    is not of this job.
    """
    mine = range(world.rank, job.num_shards, world.size)
    if _differences(job, out) != []:
        return list(mine)
    listed = _listed(out)
    missing = []
    for shard in mine:
        record = _work(_record_path(out, shard), ShardRecord) if listed is None else listed[shard]
        if record is None or not all(is_intact(out, entry) for entry in record.files):
            missing.append(shard)
    return missing


def _listed(out: Path) -> tuple[ShardEntry, ...] | None:
    """The shards of a finished run of this job; None before it is finished."""
    manifest = _manifest(out)
    return manifest.shards if isinstance(manifest, Manifest) else None


def _encode_shards(
    job: EncodeJob, out: Path, shards: list[int], features: FeatureWriter | None, progress: Progress
) -> None:
    rows = np.concatenate([job.shard_rows(shard) for shard in shards])
    work = partial(prepared_or_bad, job.encoder.prepare)
    ahead = run_ahead(job.source.images(rows), work, job.workers, max(2 * job.batch_size, 4 * job.workers))
    num_bad, limit = 0, job.max_bad.of(len(job.rows))
    listed = _listed(out)
    with contextlib.closing(ahead) as images:
        for shard in shards:
            record = encode_shard(job, out, shard, images, features, progress)
            num_bad += len(record.bad)
            if num_bad > limit:
                raise _too_many_bad(job, record.bad, num_bad)
            if listed is None:
                with atomic_file(_record_path(out, shard)) as file:
                    file.write(record.model_dump_json(exclude_none=True).encode())
            elif record.sha256 != listed[shard].sha256:
                # A lost shard of a finished run is encoded again; the bytes are the same on the same machine.
                raise FlasharError(
                    f"{record.name}, encoded again, is not what the manifest of {out} lists (another device or "
                    "version?); encode all into a new --out"
                )


def _finish(job: EncodeJob, out: Path) -> bool:
    """Writes the manifest once all shards are finished; returns whether it exists. Raises for too many bad images."""
    if (out / MANIFEST).is_file():
        if (out / WORK / PLAN).is_file():
            shutil.rmtree(out / WORK, ignore_errors=True)
        else:  # lost shards are being made again, by other processes too
            with contextlib.suppress(OSError):
                (out / WORK).rmdir()
        return True
    paths = [_record_path(out, shard) for shard in range(job.num_shards)]
    records = [record for path in paths if (record := _work(path, ShardRecord)) is not None]
    if len(records) < len(paths):  # another process is at work, or has just finished for all
        return (out / MANIFEST).is_file()
    bad = [entry for record in records for entry in record.bad]
    if len(bad) > job.max_bad.of(len(job.rows)):
        raise _too_many_bad(job, bad, len(bad))
    if len(bad) == len(job.rows):
        raise FlasharError(f"--data {job.data} has no image that can be read: {len(bad)} are bad, 0 good")
    manifest = Manifest(
        **job.settings.document(),
        source=job.data,
        counts=Counts(pictures=len(job.rows) - len(bad), views=sum(record.rows for record in records), bad=len(bad)),
        bad=tuple(bad),
        shards=tuple(record.entry() for record in records),
    )
    try:
        write_file(out, MANIFEST, (manifest.model_dump_json(indent=2, exclude_unset=True) + "\n").encode())
    except (FlasharError, FileNotFoundError):  # another process was first and has removed the hidden folder
        if not (out / MANIFEST).is_file():
            raise
    shutil.rmtree(out / WORK, ignore_errors=True)
    return True


def _too_many_bad(job: EncodeJob, bad: Sequence[BadEntry], total: int) -> FlasharError:
    return FlasharError(
        f"{total} of {len(job.rows)} images of --data {job.data} are bad, --max-bad allows "
        f"{job.max_bad.of(len(job.rows))}; {bad[-1].id} cannot be read as {job.encoder.noun} "
        f"({bad[-1].reason}); "
        "repair or remove them, or allow more"
    )
