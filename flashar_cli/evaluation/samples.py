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


def make_samples(
    job: GenerateJob,
    archive: Path,
    begin: Callable[[int], Callable[[int], None]],
    note: Callable[[str], None],
) -> Samples | None:
    """Makes an archive NAME.npz, unless one of the same settings is there; a record NAME.json beside it says which they
    are. All processes of a process group call this; the first gets the samples. ``begin`` and ``note`` as in
    ``generation.run.generate``.
    """
    record = archive.with_suffix(".json")
    targets = Targets(None, None, archive, with_images=True, layout=Layout())
    wanted = json.loads(json.dumps(identity(job, targets)))
    is_main = current_world().is_main
    sha256 = _made(archive, record, wanted) if is_main else None
    if from_first(sha256) is None:
        generate(job, targets, True, begin, note)
        if is_main:
            sha256 = _sha256(archive)
            with atomic_file(record) as file:
                file.write(json.dumps({"samples": wanted, "sha256": sha256}, indent=2).encode())
        barrier()
    return Samples(NpzArray(archive, "arr_0"), sha256) if sha256 is not None else None


def _made(archive: Path, record: Path, wanted: dict[str, Any]) -> str | None:
    """The SHA-256 of an archive that is there and of these settings; else None."""
    try:
        known = read_json(record)
        same = archive.is_file() and known["samples"] == wanted and known["sha256"] == _sha256(archive)
    except (FlasharError, KeyError, TypeError, OSError):
        return None
    return known["sha256"] if same else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
