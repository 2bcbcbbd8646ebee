"""Training of a small next-scale model, in miniature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from flashar_cli.config import ClassPrefix, GridConfig, NextScaleConfig, SchedulesConfig
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers import build_tokenizer
from scripts.tiny.scale_training import ScaleModelTraining, encode_shapes, train_scale_model
from tests.tiny_models import var_like_config

SETTINGS = ScaleModelTraining(
    num_images=6, num_validation=2, steps=4, batch_size=2, warmup_steps=1, save_every=2, validate_every=2
)


def config_of() -> NextScaleConfig:
    changes = {
        "schedules": SchedulesConfig(longest=(((1, 1), (2, 2), (3, 3)),), lengths=(3,)),
        "grid": GridConfig(height=3, width=3),
        "prefix": ClassPrefix(num_classes=10),
    }
    return var_like_config().model_copy(update=changes)


def train(settings: ScaleModelTraining, state: Path) -> tuple[NextScaleModel, list]:
    torch.manual_seed(0)
    config = config_of()
    model, tokenizer = NextScaleModel(config), build_tokenizer(config.tokenizer).requires_grad_(False)
    model.initialise(0)
    tokens = torch.randint(32, (8, 14), generator=torch.Generator().manual_seed(0))
    return model, train_scale_model(model, tokenizer, tokens, settings, state)


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, losses = train(SETTINGS, tmp_path / "whole.pt")

    def interrupt(line: str) -> None:
        if line.startswith("validation"):
            raise KeyboardInterrupt

    torch.manual_seed(0)
    config = config_of()
    model, tokenizer = NextScaleModel(config), build_tokenizer(config.tokenizer).requires_grad_(False)
    model.initialise(0)
    tokens = torch.randint(32, (8, 14), generator=torch.Generator().manual_seed(0))
    early = replace(SETTINGS, validate_every=3)
    with pytest.raises(KeyboardInterrupt):
        train_scale_model(model, tokenizer, tokens, early, tmp_path / "state.pt", interrupt)
    assert torch.load(tmp_path / "state.pt")["step"] == 2
    again, _ = train(early, tmp_path / "state.pt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert [each["step"] for each in losses] == [2, 4]


def test_the_validation_loss_is_the_cross_entropy_of_held_out_tokens(tmp_path: Path) -> None:
    model, losses = train(SETTINGS, tmp_path / "state.pt")
    torch.manual_seed(0)
    config = config_of()
    NextScaleModel(config)  # takes as many random numbers as before
    tokenizer = build_tokenizer(config.tokenizer)
    tokens = torch.randint(32, (8, 14), generator=torch.Generator().manual_seed(0))[-2:]
    maps = TokenMaps(config, tokenizer.quantizer, config.scales(config.order_grid))
    with torch.no_grad():
        logits = model(maps.inputs(tokens), Conditions(labels=torch.tensor([6, 7])), config.order_grid)
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert losses[-1]["loss"] == pytest.approx(float(expected), abs=1e-4)
    first = F.cross_entropy(logits[:, 0], tokens[:, 0])
    assert losses[-1]["by_scale"][0] == pytest.approx(float(first), abs=1e-3)


def test_settings_that_changed_are_refused(tmp_path: Path) -> None:
    train(SETTINGS, tmp_path / "state.pt")
    with pytest.raises(AssertionError, match="other settings"):
        train(replace(SETTINGS, lr=1e-3), tmp_path / "state.pt")


def test_shapes_are_encoded_once(tmp_path: Path) -> None:
    """64 pixels make a latent of 32x32 here, so the schedule ends there."""
    scales = ((1, 1), (4, 4), (32, 32))
    changes = {
        "schedules": SchedulesConfig(longest=(scales,), lengths=(3,)),
        "grid": GridConfig(height=32, width=32),
    }
    config = config_of().model_copy(update=changes)
    tokenizer = build_tokenizer(config.tokenizer).eval()
    tokens = encode_shapes(tokenizer, config, 3, tmp_path / "tokens.pt")
    assert tokens.shape == (3, 1 + 16 + 1024)
    tokenizer.encoder.conv_in.weight.data.zero_()
    assert torch.equal(encode_shapes(tokenizer, config, 3, tmp_path / "tokens.pt"), tokens)
