"""Validation losses against a mean over all images at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flashar_cli.config import DiffusionConfig
from flashar_cli.data.tokens import TokenSet
from flashar_cli.decoding.static import RASTER, RasterDecoder
from flashar_cli.training.randomness import unknown_cells
from flashar_cli.training.validation import validation_losses
from tests.tiny_models import build_model, random_config
from tests.training.test_loop import drawn_set


class DataDependent(RasterDecoder):
    """A decoder whose steps depend on the tokens that it samples."""

    name = "toy"
    num_forwards = longest_step = plan = costs = None  # never used


def test_losses_are_means_over_all_images_by_hand():
    """Seven images in batches of three: the last batch, of one, counts as one."""
    model, data = build_model(random_config(3, 4)), drawn_set(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(4))
    losses = validation_losses(model.train(), data, 3)
    assert not model.training
    tokens_BHW, conditions = data.tensors(model.device)
    order, raster = model.config.order_grid.diagonal(), model.config.order_grid.raster()
    tokens = order.from_raster(tokens_BHW)
    with torch.no_grad():
        plain = model(raster.from_raster(tokens_BHW), conditions, raster).logits
        prediction = model(tokens, conditions, order)
    cells = torch.tensor(order.cells)
    left, above = (cells % 4 > 0) | (cells == 0), (cells >= 4) | (cells == 0)

    def nats(logits, targets):
        return float(-logits.log_softmax(-1).gather(-1, targets[..., None]).mean())

    gates = prediction.gate[:, left & above, 0].double()
    entropy = -(gates * gates.log2() + (1 - gates) * (1 - gates).log2()).mean()
    expected = {
        "raster": nats(plain, tokens_BHW.flatten(1)),
        "fused": nats(prediction.logits, tokens),
        "horizontal": nats(prediction.horizontal[:, left], tokens[:, left]),
        "vertical": nats(prediction.vertical[:, above], tokens[:, above]),
        "gate_mean": float(gates.mean()),
        "gate_entropy_bits": float(entropy),
        "gate_corner": float(prediction.gate[:, 0].mean()),
    }
    assert {name: losses[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert losses["raster"] == pytest.approx(
        float(F.cross_entropy(plain.flatten(0, 1), tokens_BHW.flatten())), rel=1e-5
    )
    mirrored = TokenSet(np.stack([tokens_BHW, tokens_BHW.flip(-1)], 1), data.ids, data.subjects)
    assert validation_losses(model, mirrored, 3) == losses  # of the first view alone
    with_others = [RASTER, DataDependent()]  # which has no losses of its own
    assert validation_losses(model, data, 3, decoders=with_others) == pytest.approx({"raster": expected["raster"]})


def test_block_diffusion_is_over_the_unknown_cells_of_all_images():
    model, data = build_model(random_config(3, 4, branch=False)), drawn_set(7)
    model.add_diffusion(DiffusionConfig(block=5))
    losses = validation_losses(model, data, 3)
    assert set(losses) == {"raster", "diffusion"}
    tokens_BHW, conditions = data.tensors(model.device)
    unknown = torch.from_numpy(unknown_cells(12, 5, 0, np.zeros(7, np.int64), np.arange(7)))
    with torch.no_grad():
        raster = model.config.order_grid.raster()
        logits = model(tokens_BHW.flatten(1), conditions, raster, unknown_BN=unknown).logits
    counted = unknown.clone()
    counted[:, [0, 5, 10]] = True
    assert counted.sum(dim=1).unique().numel() > 1
    expected = F.cross_entropy(logits[counted], tokens_BHW.flatten(1)[counted])
    assert losses["diffusion"] == pytest.approx(float(expected), rel=1e-5)
