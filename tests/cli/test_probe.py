"""Captioned images through probe, adapt and encode."""

from __future__ import annotations

import numpy as np

from tests.data.images import captioned_images, shape_folder


def test_probe_and_adapt_take_captions(caption_checkpoint, small_text_encoder, run_cli, tmp_path, monkeypatch):
    from flashar_cli.training import validation

    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(validation, "MARGIN_BELOW_CHANCE", -10.0)  # the model is random
    lines = captioned_images(tmp_path / "images", 24)
    probe = run_cli(
        "probe", caption_checkpoint, "--data", lines, "--num-images", 20, "--num-validation", 8, "--out", tmp_path / "p"
    )
    assert probe.code == 0, probe.err
    arguments = ("--set", "data.num_validation=8", "--set", "engine.micro_batch_size=4", "--batch-size", 4)
    result = run_cli("adapt", caption_checkpoint, "--data", lines, *arguments, "--steps", 4, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "samples-stage2.png").exists()
    classes = shape_folder(tmp_path / "classes")
    refused = run_cli("adapt", caption_checkpoint, "--data", classes, "--out", tmp_path / "other")
    assert refused.code == 2 and "has no caption, which this model reads" in refused.err


def test_prompts_through_probe_adapt_and_generate(text_checkpoint, run_cli, tmp_path, monkeypatch):
    from flashar_cli.training import validation

    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(validation, "MARGIN_BELOW_CHANCE", -10.0)  # the model is random
    lines, shards = captioned_images(tmp_path / "images", 24), tmp_path / "shards"
    assert run_cli("encode", text_checkpoint, "--data", lines, "--out", shards).code == 0
    arguments = ("--data", shards, "--num-images", 20, "--num-validation", 8, "--out", tmp_path / "p")
    assert run_cli("probe", text_checkpoint, *arguments).code == 0
    arguments = ("--set", "data.num_validation=8", "--set", "engine.micro_batch_size=4", "--batch-size", 4)
    result = run_cli("adapt", text_checkpoint, "--data", lines, *arguments, "--steps", 4, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "samples-stage2.png").exists()
    tokens = [tmp_path / f"{name}.npy" for name in ("words", "ids", "alone")]
    made = run_cli(
        "generate", tmp_path / "out", "--prompt", "a red star", "--prompt", "ring", "--tokens-out", tokens[0]
    )
    assert made.code == 0, made.err
    (tmp_path / "ids.json").write_text('{"cond": [[10, 1, 2, 3, 11], [10, 5, 11]]}')
    typed = run_cli("generate", tmp_path / "out", "--prompt-tokens", tmp_path / "ids.json", "--tokens-out", tokens[1])
    assert typed.code == 0, typed.err
    assert np.array_equal(np.load(tokens[0]), np.load(tokens[1]))
    assert run_cli("generate", tmp_path / "out", "--prompt", "a red star", "--tokens-out", tokens[2]).code == 0
    assert np.array_equal(np.load(tokens[0])[:1], np.load(tokens[2]))  # whatever else is in its batch
    refused = run_cli("generate", tmp_path / "out", "--labels", 1, "--tokens-out", tmp_path / "no.npy")
    assert refused.code == 2 and "not --labels" in refused.err


def test_an_absent_text_encoder_stops_before_anything_is_encoded(caption_checkpoint, tmp_path, monkeypatch, run_cli):
    from flashar_cli.data.conditions import caption

    monkeypatch.setattr(caption, "TEXT_ENCODER", str(tmp_path / "nowhere"))
    lines = captioned_images(tmp_path / "images", 4)
    result = run_cli("encode", caption_checkpoint, "--data", lines, "--out", tmp_path / "out")
    assert result.code == 2 and "the text encoder" in result.err and not list((tmp_path / "out").glob("*"))
