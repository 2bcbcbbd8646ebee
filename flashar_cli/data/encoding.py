"""Pictures to code shards, by any number of processes, each of which may be killed at any moment.

The pictures, in the order of their source, are cut into shards and these into batches; shard s is the work of process
``s mod world size``. A finished shard gets its name at once and a small JSON file in a hidden folder beside it; who
finds all of these writes the manifest. So nothing is exchanged, and what is there after a kill is never done again.

Letters: n pictures of a shard, A views, H grid rows, W grid columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.config import CaptionPrefix
from flashar_cli.data import captions
from flashar_cli.data.augment import Augmentation
from flashar_cli.data.codes import ids_sha256
from flashar_cli.data.decode import BadPicture, decode
from flashar_cli.data.features import feature_bytes
from flashar_cli.data.run_ahead import run_ahead
from flashar_cli.data.shards import FORMAT_VERSION, MANIFEST, file_sha256, read_manifest, shard_bytes
from flashar_cli.data.sources.base import Fetch, PictureSource
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file, refuse_nonempty, refuse_unwritable
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.pixels import from_uint8
from flashar_cli.tokenizers.vq import VQTokenizer
from flashar_cli.world import World

WORK = ".encoding"
PLAN = "plan.json"
POLL_S = 0.1
CENTER = Augmentation()
START_TIMEOUT_S = 600.0  # how long the other processes wait for the first to prepare the folder

Progress = Callable[[int], None]


@dataclass(frozen=True)
class MaxBad:
    """How many bad pictures are too few to stop for: a count, or a percentage of all."""

    text: str

    def __post_init__(self) -> None:
        try:
            good = 0 <= float(self.text.removesuffix("%")) <= (100 if self.text.endswith("%") else float("inf"))
        except ValueError:
            good = False
        if not good or not (self.text.endswith("%") or self.text.isdecimal()):
            raise FlasharError(f"--max-bad is {self.text}; expected a count such as 20 or a percentage such as 1%")

    def of(self, num_pictures: int) -> int:
        """The largest number that is accepted."""
        if self.text.endswith("%"):
            return int(num_pictures * float(self.text[:-1]) / 100)
        return int(self.text)


ONE_PERCENT = MaxBad("1%")


@dataclass(frozen=True)
class EncodeJob:
    """What to encode: ``rows`` of ``source``, ascending. ``data`` is how the user named it; ``seed`` chose the rows
    where they are a subset, else None; ``caption_prefix`` is what caption features must fit, None for classes.
    """

    source: PictureSource
    data: str
    rows: NDArray[np.int64]
    seed: int | None
    tokenizer: VQTokenizer
    grid: Grid
    caption_prefix: CaptionPrefix | None = None
    augmentation: Augmentation = CENTER
    batch_size: int = 64
    shard_size: int = 1024
    dtype: torch.dtype = torch.float32
    max_bad: MaxBad = ONE_PERCENT
    workers: int = 4

    @property
    def num_shards(self) -> int:
        return -(-len(self.rows) // self.shard_size)

    def shard_rows(self, shard: int) -> NDArray[np.int64]:
        """The rows of one shard."""
        return self.rows[shard * self.shard_size : (shard + 1) * self.shard_size]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that the written bytes follow from."""
        prefix = self.caption_prefix
        features = prefix and {"text_encoder": captions.TEXT_ENCODER} | prefix.model_dump(exclude={"kind"})
        return {
            "format_version": FORMAT_VERSION,
            "grid": [self.grid.height, self.grid.width],
            "vocab_size": self.tokenizer.config.codebook_size,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "source_fingerprint": self.source.fingerprint,
            "subset": {"size": len(self.rows), "seed": self.seed, "ids_sha256": ids_sha256(self.source.ids[self.rows])},
            "augmentation": self.augmentation.describe(),
            "captions": features,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "shard_size": self.shard_size,
        }

    def key(self) -> str:
        """A name for these codes: the same job always has the same, another job another."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:32]


def encode(job: EncodeJob, out: Path, world: World, overwrite: bool = False, progress: Progress | None = None) -> int:
    """Encodes this process's shards that are not in ``out`` yet; returns how many pictures that were. The manifest
    appears with the last shard of any process; ``wait_for_manifest`` waits for it.

    Raises FlasharError where ``out`` holds something else, and for more bad pictures than the job allows.
    """
    mine = _missing(job, out, world)
    captioner = None
    if mine and job.caption_prefix is not None:  # before anything is written: it may not be there
        captioner = captions.CaptionEncoder(next(job.tokenizer.parameters()).device)
    _prepare(job, out, world, overwrite)
    if mine:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about single pictures: what matters is counted
            _encode_shards(job, out, mine, captioner, progress or (lambda count: None))
    _finish(job, out)
    return sum(len(job.shard_rows(shard)) for shard in mine)


def wait_for_manifest(job: EncodeJob, out: Path) -> dict[str, Any]:
    """Waits until all processes are done and returns the manifest. Raises FlasharError for too many bad pictures."""
    while not _finish(job, out):
        time.sleep(POLL_S)
    return read_manifest(out)


def count_missing(job: EncodeJob, out: Path) -> int:
    """Pictures that no process has encoded yet."""
    return sum(len(job.shard_rows(shard)) for shard in _missing(job, out, World()))


def tokenizer_sha256(tokenizer: VQTokenizer) -> str:
    """SHA-256 of a tokenizer's weights in float32, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _prepare(job: EncodeJob, out: Path, world: World, overwrite: bool) -> None:
    """Makes ``out`` the folder of this job, or finds that it is. The first process does it, the others wait."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (changed := _differences(job, out)) != []:
        if changed and not overwrite:
            raise FlasharError(
                f"--out {out} holds codes made otherwise ({', '.join(changed)} differ); choose another directory "
                "or pass --overwrite"
            )
        if world.is_main:
            if not out.is_dir() or any(path.name != WORK for path in out.iterdir()):
                refuse_nonempty(out, overwrite)
            refuse_unwritable(out)
            _clear(out)
            with atomic_file(out / WORK / PLAN) as file:
                file.write(json.dumps(job.settings).encode())
        elif time.monotonic() > deadline:
            raise FlasharError(f"process 0 has not prepared {out} in {START_TIMEOUT_S:.0f} s; is it running?")
        else:
            time.sleep(POLL_S)


def _differences(job: EncodeJob, out: Path) -> list[str] | None:
    """Settings in which the codes of ``out`` differ from the job: none where they are its own; None without codes."""
    # The manifest twice: it may take the place of the plan between the two looks.
    found = _load(out / MANIFEST) or _load(out / WORK / PLAN) or _load(out / MANIFEST)
    return None if found is None else [key for key, value in job.settings.items() if found.get(key) != value]


def _clear(directory: Path) -> None:
    """Empties a directory without replacing it: it may be a link or a mount."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _load(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _record_path(out: Path, shard: int) -> Path:
    return out / WORK / f"{shard:05d}.json"


def _missing(job: EncodeJob, out: Path, world: World) -> list[int]:
    """Shards of this process whose files are not what was written down when they were finished, or that were not
    finished; all of its shards where ``out`` is not of this job.
    """
    mine = range(world.rank, job.num_shards, world.size)
    if _differences(job, out) != []:
        return list(mine)
    manifest = _load(out / MANIFEST)
    missing = []
    for shard in mine:
        record = _load(_record_path(out, shard)) if manifest is None else manifest["shards"][shard]
        if record is None or not _is_intact(out, record):
            missing.append(shard)
    return missing


def _is_intact(out: Path, record: dict[str, Any]) -> bool:
    entries = [entry for entry in (record, record.get("captions")) if entry is not None]
    return all(
        (out / entry["name"]).is_file() and file_sha256(out / entry["name"]) == entry["sha256"] for entry in entries
    )


def _encode_shards(
    job: EncodeJob, out: Path, shards: list[int], captioner: captions.CaptionEncoder | None, progress: Progress
) -> None:
    rows = np.concatenate([job.shard_rows(shard) for shard in shards])
    height, width = (side * job.tokenizer.config.downsample for side in (job.grid.height, job.grid.width))
    work = partial(_views_or_bad, job.augmentation, height, width)
    ahead = run_ahead(job.source.pictures(rows), work, job.workers, max(2 * job.batch_size, 4 * job.workers))
    num_bad, limit = 0, job.max_bad.of(len(job.rows))
    manifest = _load(out / MANIFEST)
    with contextlib.closing(ahead) as pictures:
        for shard in shards:
            record = _encode_shard(job, out, shard, pictures, captioner, progress)
            num_bad += len(record["bad"])
            if num_bad > limit:
                raise _too_many_bad(job, record["bad"], num_bad)
            if manifest is None:
                with atomic_file(_record_path(out, shard)) as file:
                    file.write(json.dumps(record).encode())
            elif record["sha256"] != manifest["shards"][shard]["sha256"]:
                # A finished run whose shard was lost: it is made again, byte for byte where nothing else has changed.
                raise FlasharError(
                    f"{record['name']}, encoded again, is not what the manifest of {out} lists (another device or "
                    "version?); encode all into a new --out"
                )


def _views_or_bad(augmentation: Augmentation, height: int, width: int, fetch: Fetch) -> NDArray[np.uint8] | BadPicture:
    try:
        return augmentation.views(decode(fetch()), height, width)
    except BadPicture as error:
        return error
    except OSError as error:
        return BadPicture(error.strerror or str(error))


def _encode_shard(
    job: EncodeJob,
    out: Path,
    shard: int,
    pictures: Iterator[NDArray[np.uint8] | BadPicture],
    captioner: captions.CaptionEncoder | None,
    progress: Progress,
) -> dict[str, Any]:
    """Writes one shard; returns what the manifest will say of it, and its bad pictures."""
    rows, good, bad = job.shard_rows(shard), [], []
    codes = [np.empty((0, job.augmentation.num_views, job.grid.height, job.grid.width), np.int32)]
    for start in range(0, len(rows), job.batch_size):
        batch = rows[start : start + job.batch_size].tolist()
        views = []
        for row, result in zip(batch, itertools.islice(pictures, len(batch)), strict=True):
            if isinstance(result, BadPicture):
                bad.append({"id": str(job.source.ids[row]), "reason": str(result)})
            else:
                views.append(result)
                good.append(row)
        if views:
            codes.append(_codes(job, np.stack(views)))
        progress(len(batch))
    text: Any = job.source.labels if captioner is None else job.source.captions
    shown, ids = [text[row] for row in good], job.source.ids[good].tolist()
    table = shard_bytes(np.concatenate(codes), ids, shown, captioner is not None, job.tokenizer.config.codebook_size)
    record = _write(out, f"codes-{shard:05d}.parquet", table)
    record |= {"rows": len(good) * job.augmentation.num_views, "bad": bad}
    if captioner is not None:
        record["captions"] = _write(out, f"captions-{shard:05d}.safetensors", _features(job, captioner, shown))
    return record


def _features(job: EncodeJob, captioner: captions.CaptionEncoder, texts: list[str]) -> bytes:
    """The feature file of a shard's captions. Raises FlasharError where the text encoder doesn't fit the model."""
    prefix = job.caption_prefix
    assert prefix is not None
    empty = torch.zeros(0, prefix.length, prefix.feature_dim, dtype=torch.bfloat16)
    parts = [(empty, empty[:, :, 0])]
    for start in range(0, len(texts), job.batch_size):
        parts.append(captioner(texts[start : start + job.batch_size], prefix.length))
        feature_dim = parts[-1][0].shape[2]
        if feature_dim != prefix.feature_dim:
            raise FlasharError(
                f"the text encoder gives {feature_dim} values a token; this model reads {prefix.feature_dim}"
            )
    return feature_bytes(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


@torch.inference_mode()
def _codes(job: EncodeJob, views: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Codes [n, A, H, W] of uint8 [n, A, h, w, 3], at most ``batch_size`` views a forward."""
    tokenizer, codes = job.tokenizer, []
    device = next(tokenizer.parameters()).device
    flat = views.reshape(-1, *views.shape[2:])
    for start in range(0, len(flat), job.batch_size):
        images = from_uint8(flat[start : start + job.batch_size]).to(device)
        with torch.autocast(device.type, job.dtype, enabled=job.dtype != torch.float32):
            latent = tokenizer.latent(images)
        # The search for the nearest code stays in float32.
        codes.append(tokenizer.quantize.nearest(latent.float()).to(torch.int32).cpu().numpy())
    return np.concatenate(codes).reshape(*views.shape[:2], job.grid.height, job.grid.width)


def _write(out: Path, name: str, content: bytes) -> dict[str, Any]:
    """Writes a file of ``out`` by way of the hidden folder, so that a kill leaves nothing beside the shards."""
    with atomic_file(out / WORK / name) as file:
        file.write(content)
    (out / WORK / name).replace(out / name)
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest()}


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
    found = [_load(path) for path in paths] if all(path.is_file() for path in paths) else [None]
    if None in found:  # another process is at work, or has just finished for all
        return (out / MANIFEST).is_file()
    records = [record for record in found if record is not None]
    bad = [entry for record in records for entry in record.pop("bad")]
    if len(bad) > job.max_bad.of(len(job.rows)):
        raise _too_many_bad(job, bad, len(bad))
    counts = {
        "pictures": len(job.rows) - len(bad),
        "views": sum(record["rows"] for record in records),
        "bad": len(bad),
    }
    manifest = {**job.settings, "source": job.data, "counts": counts, "bad": bad, "shards": records}
    try:
        _write(out, MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    except (FlasharError, FileNotFoundError):  # another process was first and has removed the hidden folder
        if not (out / MANIFEST).is_file():
            raise
    shutil.rmtree(out / WORK, ignore_errors=True)
    return True


def _too_many_bad(job: EncodeJob, bad: list[dict[str, str]], total: int) -> FlasharError:
    return FlasharError(
        f"{total} of {len(job.rows)} pictures of --data {job.data} are bad, --max-bad allows "
        f"{job.max_bad.of(len(job.rows))}; {bad[-1]['id']} cannot be read as a picture ({bad[-1]['reason']}); "
        "repair or remove them, or allow more"
    )
