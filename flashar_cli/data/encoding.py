"""Pictures to code shards, by any number of processes, each of which may be killed at any moment.

The pictures, in the order of their source, are cut into shards and these into batches; shard s is the work of process
``s mod world size``. A finished shard gets its name at once and a small JSON file in a hidden folder beside it; who
finds all of these writes the manifest. So nothing is exchanged, and what is there after a kill is never done again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from flashar_cli.data.captions import CaptionEncoder
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.encode_shard import WORK, Progress, encode_shard, views_or_bad, write_file
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
from flashar_cli.files import atomic_file, empty_folder, parents_of, refuse_folder
from flashar_cli.kinds import ANYTHING, PARQUET, SAFETENSORS, FolderKind, json_object
from flashar_cli.reading import read_json
from flashar_cli.world import World

PLAN = "plan.json"

# Finished, or under way: then it has the hidden folder, which is all flashar's.
CODE_SHARDS = FolderKind(
    "code shards",
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


def encode(job: EncodeJob, out: Path, world: World, overwrite: bool = False, progress: Progress | None = None) -> int:
    """Encodes this process's shards that are not in ``out`` yet; returns how many pictures that were. The manifest
    appears with the last shard of any process; ``wait_for_manifest`` waits for it.

    Raises FlasharError where ``out`` holds something else, for more bad pictures than the job allows, and where none
    is good. What it leaves then, or when interrupted, is what it can go on with; nothing, where it has come to nothing.
    """
    mine = _missing(job, out, world)
    captioner = None
    if mine and job.caption_prefix is not None:  # before anything is written: it may not be there
        captioner = CaptionEncoder(next(job.tokenizer.parameters()).device)
    with _swept(out, world):
        _prepare(job, out, world, overwrite)
        if mine:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="PIL")  # about single pictures: what matters is counted
                _encode_shards(job, out, mine, captioner, progress or (lambda count: None))
        _finish(job, out)
    return sum(len(job.shard_rows(shard)) for shard in mine)


def wait_for_manifest(job: EncodeJob, out: Path) -> Manifest:
    """Waits until all processes are done and returns the manifest. Raises FlasharError for too many bad pictures."""
    while not _finish(job, out):
        time.sleep(POLL_S)
    manifest = read_manifest(out)
    assert isinstance(manifest, Manifest), "encode wrote it, or found it to be of this job"
    return manifest


def count_missing(job: EncodeJob, out: Path) -> int:
    """Pictures that no process has encoded yet."""
    return sum(len(job.shard_rows(shard)) for shard in _missing(job, out, World()))


@contextlib.contextmanager
def _swept(out: Path, world: World) -> Iterator[None]:
    """Where the work fails before a single picture is encoded, the folder goes as it came. Of several processes none
    knows what the others still write, so they leave it to the next run.
    """
    was_there = out.is_dir()
    with parents_of(out):
        try:
            yield
        except BaseException:
            records = [_work(path, ShardRecord) for path in (out / WORK).glob("[0-9]*.json")]
            fruitful = (out / MANIFEST).exists() or any(record and record.rows for record in records)
            if world.size == 1 and not fruitful:
                empty_folder(out, CODE_SHARDS)
                if not was_there:
                    with contextlib.suppress(OSError):
                        out.rmdir()
            raise


def _prepare(job: EncodeJob, out: Path, world: World, overwrite: bool) -> None:
    """Makes ``out`` the folder of this job, or finds that it is. The first process does it, the others wait."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (changed := _differences(job, out)) != []:
        if changed and not overwrite:
            raise FlasharError(
                f"--out {out} holds codes made otherwise ({'; '.join(changed)}); choose another directory "
                "or pass --overwrite"
            )
        if world.is_main:
            # Without a plan there is nothing of value in what this kind of folder holds.
            refuse_folder(out, CODE_SHARDS, overwrite or changed is None)
            empty_folder(out, CODE_SHARDS)  # not replaced: the other processes are looking into it
            with atomic_file(out / WORK / PLAN) as file:
                file.write(job.settings.model_dump_json(exclude_unset=True).encode())
        elif time.monotonic() > deadline:
            raise FlasharError(f"process 0 has not prepared {out} in {START_TIMEOUT_S:.0f} s; is it running?")
        else:
            time.sleep(POLL_S)


def _differences(job: EncodeJob, out: Path) -> list[str] | None:
    """In what the codes of ``out`` differ from the job: nothing where they are its own; None without codes."""
    try:
        # The manifest twice: it may take the place of the plan between the two looks.
        found = _manifest(out) or _work(out / WORK / PLAN, EncodeSettings) or _manifest(out)
    except FlasharError as error:
        return [str(error)]
    if found is None:
        return None
    theirs = {} if isinstance(found, OldManifest) else found.document()
    changed = [key for key, value in job.settings.document().items() if theirs.get(key) != value]
    return [f"{', '.join(changed)} differ"] if changed else []


def _manifest(out: Path) -> Manifest | OldManifest | None:
    """None where there is none. Raises FlasharError for one that is wrong."""
    return read_manifest(out) if (out / MANIFEST).exists() else None


def _work(path: Path, model: type[WorkT]) -> WorkT | None:
    """A document of the hidden folder; None where there is none that is right, and so the work is to be done."""
    try:
        return model.model_validate(read_json(path))
    except (FlasharError, ValidationError):
        return None


def _record_path(out: Path, shard: int) -> Path:
    return out / WORK / f"{shard:05d}.json"


def _missing(job: EncodeJob, out: Path, world: World) -> list[int]:
    """Shards of this process whose files are not what was written down when they were finished, or that were not
    finished; all of its shards where ``out`` is not of this job.
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
    job: EncodeJob, out: Path, shards: list[int], captioner: CaptionEncoder | None, progress: Progress
) -> None:
    rows = np.concatenate([job.shard_rows(shard) for shard in shards])
    height, width = (side * job.tokenizer.config.downsample for side in (job.grid.height, job.grid.width))
    work = partial(views_or_bad, job.augmentation, height, width)
    ahead = run_ahead(job.source.pictures(rows), work, job.workers, max(2 * job.batch_size, 4 * job.workers))
    num_bad, limit = 0, job.max_bad.of(len(job.rows))
    listed = _listed(out)
    with contextlib.closing(ahead) as pictures:
        for shard in shards:
            record = encode_shard(job, out, shard, pictures, captioner, progress)
            num_bad += len(record.bad)
            if num_bad > limit:
                raise _too_many_bad(job, record.bad, num_bad)
            if listed is None:
                with atomic_file(_record_path(out, shard)) as file:
                    file.write(record.model_dump_json(exclude_none=True).encode())
            elif record.sha256 != listed[shard].sha256:
                # A finished run whose shard was lost: it is made again, byte for byte where nothing else has changed.
                raise FlasharError(
                    f"{record.name}, encoded again, is not what the manifest of {out} lists (another device or "
                    "version?); encode all into a new --out"
                )


def _finish(job: EncodeJob, out: Path) -> bool:
    """Writes the manifest where all shards are there; whether it is there now. Raises for too many bad pictures."""
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
        raise FlasharError(f"--data {job.data} has no picture that can be read: {len(bad)} are bad, 0 good")
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
        f"{total} of {len(job.rows)} pictures of --data {job.data} are bad, --max-bad allows "
        f"{job.max_bad.of(len(job.rows))}; {bad[-1].id} cannot be read as a picture ({bad[-1].reason}); "
        "repair or remove them, or allow more"
    )
