"""From images to an adapted model in two processes that are killed again and again."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flashar_cli.data.shapes import CLASS_NAMES, draw

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 2000
STEPS = 120


def write_images(folder: Path) -> None:
    """2,000 drawn shapes in folders by class, one in fifty of them difficult in one of eight ways."""
    for index in range(NUM_IMAGES):
        path = folder / CLASS_NAMES[index % len(CLASS_NAMES)] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw(7, index))
        if index % 50 == 49:
            write_difficult(path, image, index // 50 % 8)
        else:
            image.save(path)


def write_difficult(path: Path, image: Image.Image, kind: int) -> None:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    if kind == 0:
        path.write_bytes(encoded.getvalue()[: len(encoded.getvalue()) // 2])  # truncated
    elif kind == 1:
        path.write_bytes(b"not an image")
    elif kind == 2:
        image.convert("CMYK").save(path.with_suffix(".jpg"))
    elif kind == 3:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)  # 16 bits
    elif kind == 4:
        image.save(path.with_suffix(".webp"), save_all=True, append_images=[image.rotate(90)])  # animated
    elif kind == 5:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned
        image.save(path.with_suffix(".jpg"), exif=exif)
    elif kind == 6:
        Image.new("1", (20_000, 20_000)).save(path)  # a decompression bomb
    else:
        image.putalpha(200)
        image.save(path)


def flashar(home: Path, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "flashar_cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLASHAR_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_children(parent: subprocess.Popen) -> None:
    for child in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def run(home: Path, kills: list[tuple[int, float]], progress: Callable[[], int], *arguments: object) -> None:
    """Runs a command to its end; before that, once for each (progress, seconds), starts it, waits until it has come so
    far and that long more, and kills its processes.
    """
    for reached, seconds in kills:
        process = flashar(home, *arguments)
        while process.poll() is None and progress() < reached:
            time.sleep(0.05)
        time.sleep(seconds)
        assert process.poll() is None, f"it ended before it was killed: {process.communicate()[0]}"
        kill_children(process)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGKILL and "Traceback" not in output, output
    process = flashar(home, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path):
    write_images(tmp_path / "images")
    rng = random.Random()
    encode_kills = [(rng.randint(1, 5), rng.uniform(0, 1)), (rng.randint(6, 9), rng.uniform(0, 1))]
    steps = [(0, rng.uniform(1, 8)), (rng.randint(1, 20), rng.uniform(0, 3)), (rng.randint(21, 70), rng.uniform(0, 3))]
    print("killed at (shards or steps, seconds later):", encode_kills, steps)
    for name in ("whole", "cut"):
        tokens, out = tmp_path / f"codes-{name}", tmp_path / f"adapted-{name}"
        metrics = tmp_path / f"adapted-{name}.run" / "metrics.jsonl"
        source = ("--data", tmp_path / "images", "--out", tokens, "--shard-size", 128, "--max-bad", "2%")
        run(
            tmp_path / "home",
            encode_kills if name == "cut" else [],
            lambda tokens=tokens: len(list(tokens.glob("codes-*"))),
            *("encode", "llamagen-tiny", *source, "--nproc", 2),
        )
        settings = ("--steps", STEPS, "--batch-size", 16, "--set", "save_every=5", "--set", "data.num_validation=64")
        run(
            tmp_path / "home",
            steps if name == "cut" else [],
            lambda metrics=metrics: metrics.read_text().count('"kind": "step"') if metrics.exists() else 0,
            *("adapt", "llamagen-tiny", "--data", tokens, "--out", out, *settings, "--nproc", 2),
        )
    assert content(tmp_path / "codes-whole") == content(tmp_path / "codes-cut")
    whole, cut = ((tmp_path / f"adapted-{name}" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
