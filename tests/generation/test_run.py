"""A run that is killed, again and again, ends with the bytes of one that is not."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from flashar_cli.files.writing import lock
from flashar_cli.generation import run, store
from flashar_cli.generation.arrays import ArrayFile, write_npz

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 40


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def generate(run_cli, write_tiny_checkpoint, tmp_path, monkeypatch):
    """``generate(name, *more)`` writes everything there is to write under a name."""
    write_tiny_checkpoint()
    monkeypatch.chdir(tmp_path)

    def call(name: str, *more: object):
        Path(name).mkdir(exist_ok=True)
        outputs = ("--out", f"{name}/out", "--tokens-out", f"{name}/t.npy", "--npz", f"{name}/s.npz")
        return run_cli("generate", "tiny", "--num-images", NUM_IMAGES, "--batch-size", 3, *outputs, *more)

    return call


class Killed(BaseException):
    """Stands for kill -9."""


def test_killed_anywhere_it_ends_with_the_same_bytes(generate, monkeypatch, tmp_path):
    """Dies at the n-th thing that becomes visible on the disk, with and without having done it, or having half."""
    assert generate("whole").code == 0
    rng = random.Random(0)
    steps = {"left": 10**9}

    def dying(function, half=None):
        def wrapped(*args, **options):
            steps["left"] -= 1
            if steps["left"] > 0:
                return function(*args, **options)
            if steps["left"] == 0 and half is not None and rng.random() < 0.5:
                half(*args)
            elif steps["left"] == 0 and rng.random() < 0.5:
                function(*args, **options)
            raise Killed

        return wrapped

    write_bytes, write = Path.write_bytes, store.Store.write
    monkeypatch.setattr(Path, "write_bytes", dying(write_bytes, lambda path, data: write_bytes(path, data[:100])))
    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(Path, "replace", dying(Path.replace))
    monkeypatch.setattr(ArrayFile, "write", dying(ArrayFile.write))
    monkeypatch.setattr(store.Store, "write", dying(write))
    monkeypatch.setattr(store.Store, "remove", dying(store.Store.remove))
    monkeypatch.setattr(store, "_line", dying(store._line))
    attempts = 0
    for attempts in range(200):
        steps["left"] = rng.randint(5, 60)
        done, is_settled = Path("cut/out.part/done.jsonl"), Path("cut/t.npy").exists()
        if attempts % 4 == 3 and done.exists() and not is_settled:  # a power cut: the end of a file is lost
            with open(done, "rb+") as file:
                file.truncate(max(0, os.path.getsize(file.name) - rng.randint(1, 150)))
        try:
            result = generate("cut")
        except Killed:
            if Path("cut/out").exists() and not Path("cut/out.part").exists():
                break  # when all was done
            continue
        assert result.code == 0, result
        break
    assert attempts >= 2  # a whole run takes more than a hundred steps
    assert contents(Path("cut")) == contents(Path("whole"))
    assert sorted(path.name for path in Path("cut").iterdir()) == ["out", "s.npz", "t.npy"]


def test_it_says_what_it_goes_on_with(generate, monkeypatch):
    """Ctrl-C after some batches; then what differs is refused, and the same goes on and counts only its own."""
    monkeypatch.setattr(run, "MOST_WRITERS", 1)
    drawn, draw = [], run.sample_batch

    def interrupted(*args, **options):
        if len(drawn) == 6:
            raise KeyboardInterrupt
        drawn.append(args[-1])
        return draw(*args, **options)

    monkeypatch.setattr(run, "sample_batch", interrupted)
    result = generate("a")
    assert result.code == 130 and "resume with: flashar generate tiny" in result.err
    assert not Path("a/out").exists() and not Path("a/t.npy").exists() and Path("a/out.part/done.jsonl").exists()
    monkeypatch.setattr(run, "sample_batch", lambda *args: drawn.append(args[-1]) or draw(*args))
    for more, words in (
        (("--seed", 1), "seed"),
        (("--temperature", 0.5), "temperature"),
        (("--labels", "1,2"), "conditions"),
        (("--batch-size", 4), "batch_size"),
        (("--decoder", "raster"), "decoder"),
        (("--num-images", 41), "num_images"),
    ):
        refused = generate("a", *more)
        assert refused.code == 2 and f"({words} differ)" in refused.err and refused.err.count("\n") == 1, refused.err
    result = generate("a", "--json")
    summary = json.loads(result.out)
    assert "18 of 40 images are made" in result.err and drawn == list(range(14))
    assert summary["num_made"] == 22 and summary["num_images"] == 40
    assert summary["images_per_s"] == pytest.approx(22 / summary["time_s"], rel=0.01)
    assert generate("b").code == 0 and contents(Path("a")) == contents(Path("b"))
    monkeypatch.setattr(run, "sample_batch", interrupted)
    drawn[:] = range(3)
    assert generate("c", "--seed", 1).code == 130
    monkeypatch.setattr(run, "sample_batch", draw)
    assert generate("c", "--overwrite").code == 0 and contents(Path("c")) == contents(Path("b"))


def test_what_is_damaged_or_missing_is_made_again(generate, monkeypatch):
    """A disk that is full at the very end keeps all; what is lost of it meanwhile is made again, and no more."""

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run, "publish_directory", full)
        result = generate("a")
    assert result.code == 2 and "No space left" in result.err and "the same command goes on" in result.err
    samples = Path("a/out.part/samples")
    (samples / "00004.png").unlink()
    (samples / "00010.png").write_bytes((samples / "00011.png").read_bytes())
    with open(samples / "tokens.npy", "rb+") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"other co")
    result = generate("a", "--json")  # the other two files are in their places already, with the same bytes
    assert result.code == 0 and json.loads(result.out)["num_made"] == 3 + 3 + 1
    assert generate("b").code == 0 and contents(Path("a")) == contents(Path("b"))


def test_a_file_that_came_meanwhile_is_kept(generate, monkeypatch):
    def failing(*_args: object) -> None:
        Path("a/t.npy").unlink()
        np.save("a/t.npy", np.zeros(3))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "publish_directory", failing)
        assert generate("a").code == 130
    result = generate("a")
    assert result.code == 2 and "t.npy exists; choose another file or pass --overwrite" in result.err
    assert np.load("a/t.npy").shape == (3,)
    assert generate("a", "--overwrite").code == 0 and np.load("a/t.npy").shape == (40, 4, 4)


def test_a_full_disk_is_one_line(run_cli, write_tiny_checkpoint, tmp_path, monkeypatch):
    model = write_tiny_checkpoint()
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    command = ("generate", model, "--out", tmp_path / "deep" / "out", "--num-images", 4)
    for owner, name in ((ArrayFile, "write"), (ArrayFile, "__init__"), (Path, "write_bytes"), (store, "atomic_file")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            result = run_cli(*command)
        assert result.code == 2 and "No space left on device" in result.err and result.err.count("\n") == 1, result
        assert sorted(path.name for path in tmp_path.iterdir()) == before, name
    monkeypatch.setattr("flashar_cli.machine.memory.free_disk_bytes", lambda path: 10)
    result = run_cli(*command)
    assert result.code == 2 and "writing 4 images (--num-images) needs" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_two_runs_at_once(generate):
    Path("a/out.part").mkdir(parents=True)
    held = lock(Path("a/out.part"))
    assert held is not None
    result = generate("a")
    os.close(held)
    assert result.code == 2 and "is in use" in result.err and result.err.count("\n") == 1
    assert generate("a").code == 0 and not Path("a/out.part").exists()


@pytest.mark.parametrize("shape", ((1, 2, 3), (7, 4), (5, 3, 3, 3)))
@pytest.mark.parametrize("dtype", (np.int64, np.uint8))
def test_arrays_have_the_bytes_that_numpy_writes(tmp_path, shape, dtype):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for first in random.Random(1).sample(range(shape[0]), shape[0]):  # row by row, opened anew each time
        array = ArrayFile(tmp_path / "a.npy", shape, dtype)
        array.write(first, values[first : first + 1])
        assert np.array_equal(array.read(first, 1)[0], values[first])
        array.close()
    whole, zipped = io.BytesIO(), io.BytesIO()
    np.save(whole, values)
    assert (tmp_path / "a.npy").read_bytes() == whole.getvalue()
    with open(tmp_path / "b.npz", "wb") as file:
        write_npz(tmp_path / "a.npy", file)
    np.savez(zipped, arr_0=values)
    assert (tmp_path / "b.npz").read_bytes() == zipped.getvalue()


def arguments(place: Path, total: int) -> tuple[object, ...]:
    command = ("generate", "llamagen-tiny-flashar", "--num-images", total, "--cfg-scale", 1, "--batch-size", 25)
    outputs = ("--out", place / "out", "--npz", place / "samples.npz", "--tokens-out", place / "tokens.npy")
    return *command, *outputs, "--json"


def start(place: Path, total: int, *more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flashar_cli", *map(str, (*arguments(place, total), *more))],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(place: Path) -> int:
    done = place / "out.part" / "done.jsonl"
    return done.read_text().count("\n") if done.exists() else 0


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kill(process: subprocess.Popen[str], rng: random.Random) -> None:
    """kill -9 of all processes of a run, or of one of those that another one has started."""
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if workers and rng.random() < 0.5:
        os.kill(int(rng.choice(workers)), signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_two_processes_make_the_bytes_of_one_and_no_batch_twice(tmp_path):
    for name, more in (("one", ()), ("two", ("--nproc", 2))):
        process, batches = start(tmp_path / name, 110, *more), []
        while process.poll() is None:  # the record of what is done goes with the work folder
            with suppress(FileNotFoundError):
                text = (tmp_path / name / "out.part" / "done.jsonl").read_text()
                batches = [json.loads(line)["batch"] for line in text.splitlines(keepends=True) if line.endswith("\n")]
            time.sleep(0.002)
        out, error = process.communicate()
        assert process.returncode == 0, error
        assert len(batches) >= 4 and len(set(batches)) == len(batches), batches
        made = json.loads(out)
        assert made["num_made"] == 110 and made["written"][0] == str(tmp_path / name / "out")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["out", "samples.npz", "tokens.npy"]


@pytest.mark.slow
def test_one_of_two_processes_makes_what_is_missing(tmp_path):
    """Fewer batches than processes: the rest of an interrupted run."""
    process = start(tmp_path / "cut", 75)
    while process.poll() is None and finished(tmp_path / "cut") < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    out, error = start(tmp_path / "cut", 75, "--nproc", 2).communicate()
    assert json.loads(out)["num_made"] <= 25, error
    start(tmp_path / "whole", 75).communicate()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_put_a_finished_run_in_its_place(run_cli, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(run, "_publish", Mock(side_effect=KeyboardInterrupt))
        assert run_cli(*arguments(tmp_path / "two", 30)).code == 130
    process = start(tmp_path / "two", 30, "--nproc", 2)
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert json.loads(out)["num_made"] == 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["out", "samples.npz", "tokens.npy"]


def test_others_are_refused_while_a_process_of_a_run_lives(generate):
    Path("a/out.part").mkdir(parents=True)
    held = lock(Path("a/out.part"), shared=True)
    other = lock(Path("a/out.part"), shared=True)
    assert held is not None and other is not None
    os.close(held)
    result = generate("a")
    assert result.code == 2 and "is in use" in result.err
    os.close(other)
    assert generate("a").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_2000_images_killed_five_times(tmp_path, nproc):
    total, rng = 2000, random.Random()
    more = () if nproc == 1 else ("--nproc", nproc)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process, levels = start(whole, total), []  # undisturbed, by one process
    while process.poll() is None:
        if (done := finished(whole)) >= 8:  # after what the first batches set up
            levels.append((done, rss_bytes(process.pid)))
        time.sleep(0.5)
    out, error = process.communicate()
    assert process.returncode == 0, error
    early = max(size for done, size in levels if done <= 30)
    late = max(size for _, size in levels)
    figures = [f"undisturbed: {json.loads(out)['time_s']} s; RSS {early / 2**20:.0f} to {late / 2**20:.0f} MiB"]
    # The images alone are 24 MB, of which nothing may stay.
    assert late - early < 12 * 2**20, levels
    for number in range(5):
        reached = rng.randint(1 + 14 * number, 14 + 14 * number)
        process = start(cut, total, *more)
        while process.poll() is None and finished(cut) < reached:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, process.communicate()
        kill(process, rng)
        figures.append(f"killed at {finished(cut)} batches of 80")
    process = start(cut, total, *more)
    out, error = process.communicate()
    assert process.returncode == 0, error
    made = json.loads(out)["num_made"]
    assert 0 < made < 0.6 * total and f"{total - made} of {total} images are made" in error
    print("; ".join(figures), f"; the last run made {made}")
    assert contents(cut) == contents(whole)
    assert sorted(path.name for path in cut.iterdir()) == ["out", "samples.npz", "tokens.npy"]
    tokens = np.load(cut / "tokens.npy")
    images = np.load(cut / "samples.npz")["arr_0"]
    assert len(np.unique(tokens.reshape(total, -1), axis=0)) > 0.99 * total
    with Image.open(cut / "out" / "01999.png") as image:
        assert np.array_equal(np.asarray(image), images[1999])
