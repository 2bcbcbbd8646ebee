"""Captioned pictures through probe, adapt and encode."""

from __future__ import annotations

from tests.data.pictures import captioned_pictures


def test_probe_and_adapt_take_captions(caption_checkpoint, small_text_encoder, run_cli, tmp_path, monkeypatch):
    from flashar_cli import preflight

    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(preflight, "MARGIN_BELOW_CHANCE", -10.0)  # the model is random
    lines = captioned_pictures(tmp_path / "pictures", 24)
    probe = run_cli(
        "probe", caption_checkpoint, "--data", lines, "--num-images", 20, "--num-validation", 8, "--out", tmp_path / "p"
    )
    assert probe.code == 0, probe.err
    arguments = ("--set", "data.num_validation=8", "--set", "engine.micro_batch_size=4", "--batch-size", 4)
    result = run_cli("adapt", caption_checkpoint, "--data", lines, *arguments, "--steps", 4, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert (tmp_path / "out" / "samples-stage2.png").exists()
    shapes = run_cli("adapt", caption_checkpoint, "--data", "shapes:8", "--out", tmp_path / "other")
    assert shapes.code == 2 and "no captions, which this model reads" in shapes.err


def test_an_absent_text_encoder_stops_before_anything_is_encoded(caption_checkpoint, tmp_path, monkeypatch, run_cli):
    from flashar_cli.data import captions

    monkeypatch.setattr(captions, "TEXT_ENCODER", str(tmp_path / "nowhere"))
    lines = captioned_pictures(tmp_path / "pictures", 4)
    result = run_cli("encode", caption_checkpoint, "--data", lines, "--out", tmp_path / "out")
    assert result.code == 2 and "the text encoder" in result.err and not list((tmp_path / "out").glob("*"))
