"""Encoding gives the same bytes whatever interrupts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config.recipe import DataSettings
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.encoders import ImageEncoder
from flashar_cli.data.encoding import count_missing, encode, wait_for_manifest
from flashar_cli.data.options import EncodeOptions, MaxBad
from flashar_cli.data.prepare import plan_encoding
from flashar_cli.data.shards import read_shards
from flashar_cli.errors import FlasharError
from flashar_cli.machine.world import World
from flashar_cli.tokenizers.pixels import from_uint8
from tests.data.images import bad_kinds, good_kinds, shape_folder

ROOT = Path(__file__).parents[2]
ONE = World()


def make_job(checkpoint_dir, folder, subset=None, seed=0, batch_size=4, shard_size=6, **data) -> EncodeJob:
    loaded = checkpoint.load(checkpoint_dir, torch.device("cpu"), torch.float32)
    options = EncodeOptions(DataSettings(**data), batch_size, shard_size)
    return plan_encoding(loaded, str(folder), subset, seed, options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def mixed(tmp_path) -> Path:
    """20 usual images, and one of every unusual and every bad kind."""
    folder = shape_folder(tmp_path / "images")
    for name, content in (good_kinds() | bad_kinds()).items():
        (folder / "star" / name).write_bytes(content)
    return folder


def test_tokens_are_the_tokenizers_and_bad_images_are_listed(write_tiny_checkpoint, mixed, tmp_path):
    job = make_job(write_tiny_checkpoint(), mixed, max_bad="6", augment="ten-crop", crop_ratio=1.5)
    out = tmp_path / "out"
    assert encode(job, out, ONE) == 32
    assert wait_for_manifest(job, out).counts.pictures == 26
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {"pictures": 26, "views": 260, "bad": 6}
    assert {entry["id"] for entry in manifest["bad"]} == {f"star/{name}" for name in bad_kinds()}
    assert manifest["source"] == str(mixed) and len(manifest["source_fingerprint"]) == 64
    assert manifest["augmentation"] == {"name": "ten-crop", "crop_ratio": 1.5, "views": 10}
    assert {path.name for path in out.iterdir()} == {"manifest.json", *(f"codes-{k:05d}.parquet" for k in range(6))}
    back = read_shards(out, job.encoder.grid, 32, manifest["tokenizer_sha256"], job.conditions)
    assert back.tokens.shape == (26, 10, 4, 4)
    from PIL import Image

    row = back.ids.tolist().index("heart/0008.png")
    with Image.open(mixed / "heart" / "0008.png") as image:
        views = job.encoder.augmentation.views(image, 16, 16)
    assert np.array_equal(back.tokens[row], job.encoder.tokenizer.encode(from_uint8(views)).numpy())
    assert back.subjects.labels[row] == 4  # the folders in alphabetical order


def test_too_many_bad_images_leave_nothing_to_trust(write_tiny_checkpoint, mixed, tmp_path):
    out = tmp_path / "out"
    base = write_tiny_checkpoint()
    with pytest.raises(FlasharError, match=r"of 32 images .* --max-bad allows 5; star/.* cannot be read"):
        encode(make_job(base, mixed, max_bad="5"), out, ONE)
    assert not (out / "manifest.json").exists()
    job = make_job(base, mixed, max_bad="20%")
    encode(job, out, ONE)
    encode(job, tmp_path / "fresh", ONE)
    assert contents(out) == contents(tmp_path / "fresh")
    for text in ("much", "-1", "101%", "1.5"):
        with pytest.raises(FlasharError, match="--max-bad"):
            MaxBad(text)
    assert MaxBad("1%").of(250) == 2 and MaxBad("0").of(250) == 0


class Killed(BaseException):
    """Simulates a power cut."""


def test_killed_anywhere_it_ends_with_the_same_bytes(write_tiny_checkpoint, mixed, tmp_path, monkeypatch):
    job = make_job(write_tiny_checkpoint(), mixed, max_bad="6")
    encode(job, tmp_path / "whole", ONE)
    steps = {"count": 0, "limit": 0}

    def dying(function):
        def wrapped(*args, **options):
            steps["count"] += 1
            if steps["count"] > steps["limit"]:
                raise Killed
            return function(*args, **options)

        return wrapped

    # Every rename on the disk, and every batch.
    monkeypatch.setattr(Path, "replace", dying(Path.replace))
    monkeypatch.setattr(ImageEncoder, "tokens", dying(ImageEncoder.tokens))
    out = tmp_path / "cut"
    for attempt in range(100):
        steps.update(count=0, limit=attempt % 8)
        try:
            encode(job, out, ONE)
            break
        except Killed:
            assert not (out / "manifest.json").exists() or attempt > 1
    assert attempt > 5 and contents(out) == contents(tmp_path / "whole")
    assert count_missing(job, out) == 0 and encode(job, out, ONE) == 0


def test_two_processes_share_the_shards_and_lost_ones_come_back(write_tiny_checkpoint, tmp_path):
    folder = shape_folder(tmp_path / "images", 20)
    job = make_job(write_tiny_checkpoint(), folder)
    encode(job, tmp_path / "one", ONE)
    out = tmp_path / "two"
    assert encode(job, out, World(0, 2)) == 12 and not (out / "manifest.json").exists()
    assert encode(job, out, World(1, 2)) == 8
    assert contents(out) == contents(tmp_path / "one")
    (out / "codes-00001.parquet").write_bytes(b"damaged")
    (out / "codes-00002.parquet").unlink()
    with pytest.raises(FlasharError, match="codes-00001.parquet is corrupted"):
        read_shards(out, job.encoder.grid, 32, None, job.conditions)
    assert count_missing(job, out) == 12
    assert encode(job, out, World(0, 2)) == 6 and encode(job, out, World(1, 2)) == 6
    assert contents(out) == contents(tmp_path / "one")


def test_processes_wait_for_each_other(write_tiny_checkpoint, tmp_path):
    """The second process may come first: it waits for the folder, the first one for the manifest."""
    job, out = make_job(write_tiny_checkpoint(), shape_folder(tmp_path / "images", 20)), tmp_path / "out"
    with ThreadPoolExecutor() as pool:
        late = pool.submit(encode, job, out, World(1, 2))
        assert encode(job, out, World(0, 2)) == 12
        assert wait_for_manifest(job, out).counts.pictures == 20 and late.result() == 8


def test_another_plan_is_refused_or_replaces(write_tiny_checkpoint, tmp_path):
    folder, base, out = shape_folder(tmp_path / "images", 20), write_tiny_checkpoint(), tmp_path / "out"
    job, other = make_job(base, folder), make_job(base, folder, subset=12)
    encode(job, out, ONE)
    with pytest.raises(FlasharError, match=r"holds tokens made otherwise \(subset differ\)"):
        encode(other, out, ONE)
    encode(other, out, ONE, overwrite=True)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["subset"]["size"] == 12 and manifest["subset"]["seed"] == 0
    assert len(list(out.glob("*.parquet"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FlasharError, match="not empty"):
        encode(job, tmp_path / "mine", ONE)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_subset_does_not_depend_on_the_order_of_files(write_tiny_checkpoint, tmp_path):
    """The same images listed in another order in a manifest are the same subset, class by class."""
    folder = shape_folder(tmp_path / "images", 40)
    files = sorted(folder.rglob("*.png"))
    base, chosen = write_tiny_checkpoint(), []
    for order in (files, files[::-1]):
        lines = [
            json.dumps({"image": str(path), "label": int(path.stem) % 10, "id": f"image {path.stem}"}) for path in order
        ]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        job = make_job(base, tmp_path / "list.jsonl", subset=20, seed=3)
        chosen.append((set(job.source.ids[job.rows].tolist()), job.settings.subset))
        assert np.bincount(job.source.labels[job.rows]).tolist() == [2] * 10
    assert chosen[0] == chosen[1]


def run_encode(arguments, nproc=None, kill_after=None):
    """`flashar encode` in a process group of its own, killed once ``kill_after`` shards are there."""
    command = [sys.executable, "-m", "flashar_cli", "encode", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if nproc:
        command += ["--nproc", str(nproc)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True, cwd=ROOT)
    out = Path(arguments[arguments.index("--out") + 1])
    while kill_after is not None and process.poll() is None:
        if len(list(out.glob("*.parquet"))) >= kill_after:
            os.killpg(process.pid, 9)
    _, error = process.communicate(timeout=120)
    return process.returncode, error.decode()


@pytest.mark.slow
def test_processes_killed_for_real(write_tiny_checkpoint, tmp_path):
    base, folder = write_tiny_checkpoint(), shape_folder(tmp_path / "images", 60)
    (folder / "star" / "bad.png").write_bytes(b"no image")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    job = make_job(base, folder, batch_size=2, shard_size=4, max_bad="1", augment="center-flip")
    encode(job, whole, ONE)
    shared = [base, "--data", folder, "--batch-size", 2, "--shard-size", 4, "--max-bad", 1, "--augment", "center-flip"]
    code, _ = run_encode([*shared, "--out", cut], nproc=2, kill_after=3)
    assert code == -9 and not (cut / "manifest.json").exists()
    code, error = run_encode([*shared, "--out", cut], nproc=2)
    assert code == 0, error
    assert contents(cut) == contents(whole)
