"""`flashar eval`, from models to report and page."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from flashar_cli import api
from flashar_cli.checkpoints import checkpoint
from flashar_cli.errors import FlasharError
from flashar_cli.evaluation import samples
from flashar_cli.evaluation.judges import choose_judge
from flashar_cli.evaluation.judges.scenes import ScenesJudge
from flashar_cli.evaluation.judges.shapes import ShapesJudge
from flashar_cli.generation import run
from tests.tiny_models import build_model, emu_like_config, random_config

CONFIG = random_config()
QUICK = ("--num-images", 40, "--num-validation", 20, "--batch-size", 30)


@pytest.fixture(autouse=True)
def _few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashar_cli.evaluation.judges.shapes.NUM_HELD_OUT", 100)
    monkeypatch.setattr("flashar_cli.evaluation.judges.JUDGES", (ShapesJudge(), ScenesJudge()))


def test_two_models_side_by_side(run_cli, tmp_path, monkeypatch):
    out = tmp_path / "eval"
    command = ("eval", "llamagen-tiny", "llamagen-tiny-flashar", *QUICK, "--out", out)
    done = run_cli(*command, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((out / "eval.json").read_text())
    raster, flashar = report["arms"]
    assert (raster["decoder"], flashar["decoder"]) == ("raster", "flashar")
    for arm in report["arms"]:
        accuracy, distance = arm["figures"]
        images = np.load(out / f"{arm['name']}.npz")["arr_0"]
        assert images.shape == (40, 64, 64, 3) and arm["num_images"] == 40
        judged = {figure.name: figure for figure in ShapesJudge().figures([images], CONFIG)}
        assert accuracy["value"] == judged["accuracy"].value > 0.75
        assert accuracy["error"] == pytest.approx((accuracy["value"] * (1 - accuracy["value"]) / 40) ** 0.5)
        assert distance["value"] == pytest.approx(judged["frechet_distance"].value)
    lengths = {(arm["name"], each["head"]): each for arm in report["arms"] for each in arm["code_lengths"]}
    assert set(lengths) == {
        ("llamagen-tiny-raster", "raster"),
        *(("llamagen-tiny-flashar-flashar", head) for head in ("fused", "horizontal", "vertical")),
    }
    assert 0.1 < lengths["llamagen-tiny-raster", "raster"]["total"] < 0.5
    assert len(lengths["llamagen-tiny-raster", "raster"]["by_row"]) == 16
    page = (out / "eval.html").read_text()
    assert page.count("<img") == 2 * 40 and "http" not in page.replace("http://www.w3.org", "")
    before = {path.name: path.read_bytes() for path in out.glob("*.npz")}
    monkeypatch.setattr(samples, "generate", lambda *given: pytest.fail("the samples are there"))
    again = run_cli(*command)
    assert again.code == 0 and "llamagen-tiny-raster" in again.out + again.err
    assert {path.name: path.read_bytes() for path in out.glob("*.npz")} == before


def test_samples_of_other_settings_are_replaced_only_when_asked(run_cli, tmp_path):
    out = tmp_path / "eval"
    quick = ("eval", "llamagen-tiny-flashar", "--num-images", 20, "--num-validation", 10, "--out", out, "--json")
    first = json.loads(run_cli(*quick, "--seed", 0).out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = run_cli(*quick, "--seed", 1)
    assert refused.code == 2 and "pass --overwrite to replace it" in refused.err and refused.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    second = json.loads(run_cli(*quick, "--seed", 1, "--overwrite").out)
    assert first["arms"][0]["samples_sha256"] != second["arms"][0]["samples_sha256"]
    np.savez(out / "llamagen-tiny-flashar-flashar.npz", arr_0=np.zeros((20, 64, 64, 3), np.uint8))
    assert run_cli(*quick, "--seed", 1).code == 2
    third = json.loads(run_cli(*quick, "--seed", 1, "--overwrite").out)
    assert third["arms"][0]["samples_sha256"] == second["arms"][0]["samples_sha256"]


def test_several_decoders_of_a_model(run_cli, tmp_path):
    done = run_cli(
        *("eval", "llamagen-tiny", "--decoder", "raster", "--decoder", "zipar:8", "--decoder", "jacobi:8"),
        *("--num-images", 10, "--num-validation", 10, "--out", tmp_path / "eval", "--json"),
    )
    assert done.code == 0, done.err
    arms = json.loads(done.out)["arms"]
    assert [arm["decoder"] for arm in arms] == ["raster", "zipar:8", "jacobi:8"]
    assert [len(arm["code_lengths"]) for arm in arms] == [1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("llamagen-tiny", "--decoder", "flashar"), "no vertical branch"),
        (("llamagen-tiny", "--decoder", "nothing"), "--decoder is nothing"),
        (("llamagen-tiny", "llamagen-tiny"), "asked for twice"),
        (("llamagen-tiny", "--reference", "missing.npz"), "missing.npz"),
        (("llamagen-tiny", "--inception", "weights.pth"), "--inception is for --reference, which is missing"),
        (("llamagen-tiny", "--num-images", "1"), "--num-images is 1"),
        (("nowhere",), "nowhere"),
    ),
)
def test_bad_input_is_one_line(run_cli, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = run_cli("eval", *arguments)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("tokenizer", (True, False))
def test_a_model_of_which_nothing_can_be_measured(run_cli, tmp_path, write_tiny_checkpoint, tokenizer):
    done = run_cli("eval", write_tiny_checkpoint(tokenizer=tokenizer), "--out", tmp_path / "eval")
    assert done.code == 2 and "nothing of tiny-flashar can be measured" in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "eval").exists()


def test_without_a_tokenizer_there_are_nats_per_token_alone(run_cli, tmp_path, write_tiny_checkpoint):
    """Of a model of prompts and of one of classes; a reference of images is refused."""
    tokens = tmp_path / "tokens"
    encoded = run_cli("encode", write_tiny_checkpoint("whole"), "--data", "shapes:20", "--out", tokens)
    assert encoded.code == 0, encoded.err
    quick = ("eval", write_tiny_checkpoint(tokenizer=False), "--num-validation", 10, "--out", tmp_path / "eval")
    done = run_cli(*quick, "--data", tokens, "--json")
    assert done.code == 0, done.err
    (arm,) = json.loads(done.out)["arms"]
    assert arm["figures"] == [] and arm["judge"] is None and len(arm["code_lengths"]) == 3
    config = emu_like_config()
    checkpoint.save(tmp_path / "prompts", config, build_model(config).state_dict(), None)
    done = run_cli("eval", tmp_path / "prompts", "--out", tmp_path / "other")
    assert done.code == 2 and "nothing of prompts-flashar can be measured" in done.err
    with pytest.raises(FlasharError, match="no tokenizer, so there are no images to judge"):
        choose_judge(random_config(tokenizer=False), ShapesJudge())


def test_samples_that_another_run_began_are_refused_before_any_are_made(run_cli, tmp_path, monkeypatch):
    out, draw = tmp_path / "eval", run.sample_batch
    both = ("--decoder", "raster", "--decoder", "flashar", *QUICK, "--out", out)

    def interrupted(engine, request, index):
        if index == 1:
            raise KeyboardInterrupt
        return draw(engine, request, index)

    with monkeypatch.context() as patched:
        patched.setattr(run, "sample_batch", interrupted)
        assert run_cli("eval", "llamagen-tiny-flashar", *QUICK, "--out", out).code == 130
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused = run_cli("eval", "llamagen-tiny-flashar", *both, "--seed", 1)
    assert refused.code == 2 and "an interrupted run with other settings" in refused.err, refused.err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_one_model_is_in_memory_at_a_time(run_cli, tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    load = api.checkpoint.load

    def counted(*given):
        gc.collect()
        assert [each for each in alive if each() is not None] == []
        loaded = load(*given)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(api.checkpoint, "load", counted)
    done = run_cli(
        *("eval", "llamagen-tiny-flashar", "--decoder", "flashar", "--decoder", "zipar:1"),
        *("--num-images", 4, "--num-validation", 4, "--out", tmp_path / "eval"),
    )
    assert done.code == 0, done.err
    assert len(alive) == 2 * 2  # a first time to check


def test_an_interrupted_run_goes_on(run_cli, tmp_path, monkeypatch):
    quick = ("eval", "llamagen-tiny-flashar", "--num-images", 40, "--num-validation", 10, "--batch-size", 10, "--json")
    whole = json.loads(run_cli(*quick, "--out", tmp_path / "whole").out)
    drawn, draw = [], run.sample_batch

    def interrupted(*given):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(given)
        return draw(*given)

    with monkeypatch.context() as patched:
        patched.setattr(run, "MOST_WRITERS", 1)
        patched.setattr(run, "sample_batch", interrupted)
        assert run_cli(*quick, "--out", tmp_path / "parts").code == 130
    again = run_cli(*quick, "--out", tmp_path / "parts")
    assert again.code == 0, again.err
    assert "going on with" in again.err
    assert json.loads(again.out)["arms"] == whole["arms"]


def test_samples_whose_run_was_killed_while_they_were_put_in_place_are_made_again(run_cli, tmp_path):
    out = tmp_path / "eval"
    quick = ("eval", "llamagen-tiny-flashar", "--num-images", 20, "--num-validation", 10, "--out", out, "--json")
    first = json.loads(run_cli(*quick).out)
    archive, record = out / "llamagen-tiny-flashar-flashar.npz", out / "llamagen-tiny-flashar-flashar.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": None}))
    np.savez(archive, arr_0=np.zeros((20, 64, 64, 3), np.uint8))
    again = run_cli(*quick)
    assert again.code == 0, again.err
    assert json.loads(again.out)["arms"] == first["arms"]
    assert json.loads(record.read_text())["sha256"] == first["arms"][0]["samples_sha256"]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """From an empty cache, so that held-out images have to be encoded."""
    reports = []
    for name, more in (("one", ()), ("two", ("--nproc", "2"))):
        command = (
            "eval",
            "llamagen-tiny-flashar",
            "--num-images",
            "40",
            "--num-validation",
            "20",
            "--batch-size",
            "10",
        )
        done = subprocess.run(
            [sys.executable, "-m", "flashar_cli", *command, "--out", str(tmp_path / name), "--json", *more],
            env=os.environ | {"OMP_NUM_THREADS": "1", "FLASHAR_HOME": str(tmp_path / f"home-{name}")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout)["arms"])
    assert reports[0] == reports[1]
