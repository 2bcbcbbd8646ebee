"""A raster base that reads captions of drawn shapes is trained, written and loaded again, in miniature."""

from __future__ import annotations

import sys

import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import read_config
from scripts import train_tiny_base
from scripts.tiny.raster_training import new_model
from tests.tiny_models import random_config


def test_a_base_that_reads_text_learns_captioned_shapes(text_checkpoint, tmp_path, monkeypatch, run_cli):
    monkeypatch.setenv("FLASHAR_HOME", str(tmp_path / "home"))
    shards, out = tmp_path / "shards", tmp_path / "trained"
    assert run_cli("encode", text_checkpoint, "--data", "shapes:24", "--out", shards).code == 0
    command = [text_checkpoint, shards, out, "--steps", 12, "--anneal-steps", 4, "--batch-size", 8]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, command), "--num-validation", "8", "--lr", "1e-2"])
    train_tiny_base.main()
    before, after = (checkpoint.load(path, torch.device("cpu"), torch.float32) for path in (text_checkpoint, out))
    assert after.text_tokenizer is not None and after.config.prefix == before.config.prefix
    assert checkpoint.stored_dtype(out) == torch.float16
    assert not torch.equal(after.model.prefix.embedding.weight, before.model.prefix.embedding.weight)
    config = read_config(out)
    assert config.raster_loss is not None and config.raster_loss < 3.4  # 32 tokens: ln 32 = 3.47
    assert config.provenance.recipe["steps"] == 12 and config.provenance.data_fingerprint
    # Read directly, drawn shapes are the same tokens as their shards.
    command[1] = "shapes:24"
    monkeypatch.setattr(sys, "argv", ["train", *map(str, [*command[:2], tmp_path / "again", *command[3:]])])
    sys.argv += ["--num-validation", "8", "--lr", "1e-2"]
    train_tiny_base.main()
    assert read_config(tmp_path / "again").provenance.data_fingerprint == config.provenance.data_fingerprint


def test_new_models_follow_the_seed():
    first, second, other = (new_model(random_config(branch=False), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["backbone.embedding.weight"], other["backbone.embedding.weight"])
