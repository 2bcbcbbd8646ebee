"""`flashar encode`: what it writes, says and refuses."""

from __future__ import annotations

import json

import pytest

from tests.data.images import bad_kinds, shape_folder


def test_encode_writes_shards_and_says_how_fast(run_cli, write_tiny_checkpoint, tmp_path):
    folder = shape_folder(tmp_path / "images", 30)
    (folder / "star" / "bad.png").write_bytes(bad_kinds()["truncated.png"])
    command = ("encode", write_tiny_checkpoint(), "--data", folder, "--max-bad", "5%", "--shard-size", 8, "--out")
    result = run_cli(*command, tmp_path / "out", "--augment", "center-flip")
    assert result.code == 0, result.err
    assert "30 images, 60 views, 1 bad ones skipped" in result.out and "images/s" in result.out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["bad"][0]["id"] == "star/bad.png" and len(manifest["shards"]) == 4
    again = run_cli(*command, tmp_path / "out", "--augment", "center-flip")
    assert again.code == 0 and "nothing was done" in again.out
    other = run_cli(*command, tmp_path / "out")
    assert other.code == 2 and "augmentation differ" in other.err and "--overwrite" in other.err
    document = json.loads(run_cli(*command, tmp_path / "out", "--overwrite", "--subset", 20, "--json").out)
    assert document["views"] + document["bad"] == 20 and document["encoded"] == 20 and document["images_per_s"] > 0


def test_dry_run_and_too_many_bad_images(run_cli, write_tiny_checkpoint, tmp_path):
    folder = shape_folder(tmp_path / "images", 30)
    (folder / "star" / "bad.png").write_bytes(b"")
    command = ("encode", "--base", write_tiny_checkpoint(), "--data", folder, "--out", tmp_path / "out")
    plan = json.loads(run_cli(*command, "--subset", 20, "--dry-run").out)
    assert (plan["subset"]["size"], plan["images_missing"], plan["shards"]) == (20, 20, 1)
    assert not (tmp_path / "out").exists()
    result = run_cli(*command)
    assert result.code == 2 and "star/bad.png cannot be read as an image" in result.err
    assert result.err.strip().splitlines()[-1].startswith("error: 1 of 31 images")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--augment", "five-crop"), "--augment is five-crop"),
        (("--crop-ratio", 0.5), "--crop-ratio is 0.5"),
        (("--max-bad", "some"), "--max-bad is 'some'"),
        (("--data", "./nowhere"), "--data ./nowhere does not exist"),
        (("--nproc", 0), "--nproc is 0"),
        (("--subset", 0), "--subset"),
        (("--device", "tpu"), "--device is tpu"),
    ),
)
def test_bad_options_write_nothing(run_cli, write_tiny_checkpoint, tmp_path, arguments, words):
    base = write_tiny_checkpoint()
    result = run_cli("encode", base, "--data", "shapes:4", "--out", tmp_path / "out", *arguments)
    assert result.code == 2 and words in result.err and result.err.strip().count("\n") <= 1, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_model_without_tokenizer_cannot_encode(run_cli, write_tiny_checkpoint, tmp_path):
    base = write_tiny_checkpoint(tokenizer=False)
    result = run_cli("encode", base, "--data", "shapes:4", "--out", tmp_path / "out")
    assert result.code == 2 and "no tokenizer" in result.err
