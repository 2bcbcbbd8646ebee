"""From pictures to an adapted model in two processes that are killed again and again."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flashar_cli.data.shapes import CLASS_NAMES, draw

ROOT = Path(__file__).parents[1]
NUM_PICTURES = 2000
STEPS = 60


def write_pictures(folder: Path) -> None:
    """2,000 drawn shapes in folders by class, one in fifty of them difficult in one of eight ways."""
    for index in range(NUM_PICTURES):
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
        path.write_bytes(b"not a picture")
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


def run(home: Path, kill_after_s: list[float], *arguments: object) -> int:
    """Runs a command to its end; before that, once for each time given, starts it and kills its processes. Returns
    how many of them were still running then.
    """
    killed = 0
    for seconds in kill_after_s:
        process = flashar(home, *arguments)
        time.sleep(seconds)
        if process.poll() is None:
            kill_children(process)
            killed += 1
        output, _ = process.communicate(timeout=120)
        if process.returncode == 0:
            return killed  # it was faster than the killer
        assert process.returncode in (2, 128 + signal.SIGKILL) and "Traceback" not in output, output
    process = flashar(home, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return killed


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path):
    write_pictures(tmp_path / "pictures")
    rng = random.Random()
    kills = {
        "whole": ([], []),
        "cut": ([rng.uniform(5, 15) for _ in range(2)], [rng.uniform(8, 30) for _ in range(3)]),
    }
    print("killed after seconds:", kills["cut"])
    for name, (encode_kills, adapt_kills) in kills.items():
        codes, out = tmp_path / f"codes-{name}", tmp_path / f"adapted-{name}"
        source = ("--data", tmp_path / "pictures", "--out", codes, "--shard-size", 128, "--max-bad", "2%")
        killed = run(tmp_path / "home", encode_kills, "encode", "llamagen-tiny", *source, "--nproc", 2)
        settings = ("--steps", STEPS, "--batch-size", 16, "--set", "save_every=5", "--set", "data.num_validation=64")
        adapt = ("adapt", "llamagen-tiny", "--data", codes, "--out", out, *settings, "--nproc", 2)
        killed += run(tmp_path / "home", adapt_kills, *adapt)
        assert name == "whole" or killed >= 4, "the machine is too fast for these moments"
    assert content(tmp_path / "codes-whole") == content(tmp_path / "codes-cut")
    whole, cut = ((tmp_path / f"adapted-{name}" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
