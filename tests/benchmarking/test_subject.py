"""What is benched: presets, checkpoints, grids, branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flashar_cli.benchmarking import subject
from flashar_cli.config import BranchConfig, default_gate_dim
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid

CPU = torch.device("cpu")


def load(path: Path, res: int | None = None, random_weights: bool = False) -> subject.BenchModel:
    return subject.load_subject(str(path), () if res is None else (res,), random_weights, CPU, torch.float32, 0)


def test_checkpoint_keeps_its_branch(write_tiny_checkpoint: Callable[..., Path]) -> None:
    loaded = load(write_tiny_checkpoint())
    assert not loaded.branch_added
    assert loaded.weights.startswith("sha256:")
    assert loaded.tokenizer is not None


def test_base_gets_a_branch_that_copies_the_backbone(write_tiny_checkpoint: Callable[..., Path]) -> None:
    loaded = load(write_tiny_checkpoint(branch=False))
    assert loaded.branch_added
    model = loaded.model
    assert model.branch is not None
    backbone = model.config.backbone
    gate_dim = default_gate_dim("hidden", backbone.dim, backbone.vocab_size)
    fresh = BranchConfig(layer=backbone.num_layers - 1, depth=1, gate="hidden", gate_dim=gate_dim)
    assert model.config.branch == fresh
    assert torch.equal(model.branch.head.weight, model.backbone.head.weight)


def test_another_grid_needs_random_weights(write_tiny_checkpoint: Callable[..., Path]) -> None:
    path = write_tiny_checkpoint()
    assert load(path, res=16).model.config.order_grid == Grid(4, 4)
    with pytest.raises(FlasharError, match="--random-weights"):
        load(path, res=32)
    other = load(path, res=32, random_weights=True)
    assert other.model.config.order_grid == Grid(8, 8)
    assert other.weights == "random weights"


@pytest.mark.parametrize("res", [2, 18])
def test_res_is_a_multiple_of_the_token_size(write_tiny_checkpoint: Callable[..., Path], res: int) -> None:
    with pytest.raises(FlasharError, match="multiple of 4"):
        load(write_tiny_checkpoint(), res=res, random_weights=True)


def test_res_needs_a_tokenizer(write_tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(FlasharError, match="leave --res out"):
        load(write_tiny_checkpoint(tokenizer=False), res=16)


def test_preset_of_another_grid_is_refused_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.hub, "resolve", lambda name: pytest.fail("looked for weights"))
    with pytest.raises(FlasharError, match="24x24"):
        subject.load_subject("llamagen-xl", (512,), False, CPU, torch.float32, 0)


def test_missing_preset_suggests_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> Path:
        raise FlasharError("the Hub can't be reached")

    monkeypatch.setattr(subject.hub, "resolve", offline)
    with pytest.raises(FlasharError, match="--random-weights"):
        subject.load_subject("llamagen-b", (), False, CPU, torch.float32, 0)


def test_random_models_follow_the_seed(write_tiny_checkpoint: Callable[..., Path]) -> None:
    path = write_tiny_checkpoint()
    first, second = (load(path, random_weights=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert first.tokenizer is not None and second.tokenizer is not None
    pairs = zip(first.tokenizer.parameters(), second.tokenizer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in first.model.parameters())
    assert first.model.backbone.head.weight.std() > 0.01, "a head of zeros would have every decoder sample token 0"
