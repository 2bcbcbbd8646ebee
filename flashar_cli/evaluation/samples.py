"""The samples that are judged: an archive of each arm, made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashar_cli.errors import FlasharError
from flashar_cli.files.arrays import NpzArray
from flashar_cli.files.writing import atomic_file
from flashar_cli.generation.job import GenerateJob
from flashar_cli.generation.layout import Layout
from flashar_cli.generation.run import generate, identity
from flashar_cli.generation.store import refuse_other
from flashar_cli.generation.targets import Targets
from flashar_cli.inputs.reading import read_json
from flashar_cli.machine.processes import barrier, from_first
from flashar_cli.machine.world import current_world

PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Samples:
    """Images uint8 [N, h, w, 3] in a file, and the file's SHA-256."""

    images: NpzArray
    sha256: str


def check_samples(job: GenerateJob, archive: Path) -> None:
    """Raises FlasharError where an archive, or the beginning of one, is there that is not of these settings."""
    wanted = _wanted(job, archive)
    refuse_other(_targets(archive).work, wanted)
    if archive.exists() and not _is_unfinished(archive, wanted) and _made(archive, wanted) is None:
        raise FlasharError(
            f"{archive} has samples of other settings or weights, or was changed; pass --overwrite to replace it, or "
            "another --out"
        )


def make_samples(
    job: GenerateJob,
    archive: Path,
    overwrite: bool,
    begin: Callable[[int], Callable[[int], None]],
    note: Callable[[str], None],
) -> Samples | None:
    """Makes an archive NAME.npz, unless one of the same settings is there; a record NAME.json beside it says which they
    are. All processes of a process group call this; the first gets the samples. ``begin`` and ``note`` as in
    ``generation.run.generate``.
    """
    is_main, wanted = current_world().is_main, _wanted(job, archive)
    sha256 = _made(archive, wanted) if is_main else None
    if from_first(sha256) is None:
        if is_main:
            overwrite |= archive.exists() and _is_unfinished(archive, wanted)
            _write_record(archive, wanted, None)
        generate(job, _targets(archive), overwrite, begin, note)
        if is_main:
            sha256 = _sha256(archive)
            _write_record(archive, wanted, sha256)
        barrier()
    return Samples(NpzArray(archive, "arr_0"), sha256) if sha256 is not None else None


def _targets(archive: Path) -> Targets:
    return Targets(None, None, archive, with_images=True, layout=Layout())


def _wanted(job: GenerateJob, archive: Path) -> dict[str, Any]:
    """What samples follow from, as the record has it."""
    wanted: dict[str, Any] = json.loads(json.dumps(identity(job, _targets(archive))))
    return wanted


def _write_record(archive: Path, wanted: dict[str, Any], sha256: str | None) -> None:
    """``sha256`` None: the archive is not finished."""
    with atomic_file(archive.with_suffix(".json")) as file:
        file.write(json.dumps({"samples": wanted, "sha256": sha256}, indent=2).encode())


def _recorded(archive: Path, wanted: dict[str, Any]) -> list[str | None]:
    """The SHA-256 in the record of an archive of these settings; empty where there is none."""
    try:
        known = read_json(archive.with_suffix(".json"))
        return [known["sha256"]] if known["samples"] == wanted else []
    except (FlasharError, KeyError, TypeError):
        return []


def _is_unfinished(archive: Path, wanted: dict[str, Any]) -> bool:
    return _recorded(archive, wanted) == [None]


def _made(archive: Path, wanted: dict[str, Any]) -> str | None:
    """The SHA-256 of an archive that is there and of these settings; else None."""
    try:
        found = _sha256(archive)
    except OSError:
        return None
    return found if [found] == _recorded(archive, wanted) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
