"""Code lengths by cell against logits of the whole batch, and against the losses of training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashar_cli.decoding.static import FLASHAR, RASTER, zipar
from flashar_cli.evaluation.code_length import CodeLength, code_lengths
from flashar_cli.training.losses import LOGITS_AT_ONCE
from flashar_cli.training.validation import validation_losses
from tests.decoding.test_decoder import make_model
from tests.training.test_loop import drawn_set


def test_rows_and_columns_by_hand():
    found = CodeLength.of(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0]]))
    assert found.total == 3.0 and found.by_row == [2.0, 5.0]
    assert found.by_column[0] == 1.0 and math.isnan(found.by_column[1]) and found.by_column[2] == 4.0


@pytest.mark.parametrize("at_once", (LOGITS_AT_ONCE, 32 * 10))
def test_each_cell_is_what_the_logits_say(at_once, monkeypatch):
    """Seven images, three at a time; heads and gate are computed for a few cells at a time."""
    monkeypatch.setattr("flashar_cli.training.losses.LOGITS_AT_ONCE", at_once)
    model, data = make_model(3, 4, "hidden"), drawn_set(7)
    tokens, conditions = data.tensors(model.device)
    order = model.config.order_grid.diagonal()
    with torch.no_grad():
        whole = model(order.from_raster(tokens), conditions, order)
    found = code_lengths(model, FLASHAR, data, 3)
    assert set(found) == {"fused", "horizontal", "vertical"}
    for name, logits in (("fused", whole.logits), ("horizontal", whole.horizontal), ("vertical", whole.vertical)):
        nats = -order.to_raster(logits, trailing=1).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        nats = nats.double().mean(dim=0).numpy()
        if name == "horizontal":
            nats[1:, 0] = np.nan
        if name == "vertical":
            nats[0, 1:] = np.nan
        assert found[name].total == pytest.approx(np.nanmean(nats), abs=1e-6)
        assert found[name].by_row == pytest.approx(np.nanmean(nats, axis=1).tolist(), abs=1e-6)
        assert found[name].by_column == pytest.approx(np.nanmean(nats, axis=0).tolist(), abs=1e-6)


@torch.inference_mode()
def test_an_order_that_is_known_step_by_step_alone():
    model, data = make_model(3, 4, "hidden"), drawn_set(5)
    tokens, conditions = data.tensors(model.device)
    logits = zipar(2).logits(model, None, tokens, conditions, model.config.order_grid)
    nats = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].double().mean(dim=0)
    (length,) = code_lengths(model, zipar(2), data, 3).values()
    assert length.total == pytest.approx(nats.mean().item(), abs=1e-5)
    assert length.by_row == pytest.approx(nats.mean(dim=1).tolist(), abs=1e-5)


def test_totals_are_the_validation_losses_of_training():
    model, data = make_model(3, 4, "hidden"), drawn_set(7)
    losses = validation_losses(model, data, 3)
    found = {**code_lengths(model, FLASHAR, data, 4), **code_lengths(model, RASTER, data, 4)}
    assert {name: length.total for name, length in found.items()} == pytest.approx(
        {name: losses[name] for name in ("fused", "horizontal", "vertical", "raster")}, abs=1e-5
    )
