"""The gate map against the gates of single images, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashar_cli.adaptation.gates import gate_figure, gate_map, inner_figure
from flashar_cli.reporting.figures import to_png
from tests.tiny_models import build_model, random_config
from tests.training.test_loop import drawn_set

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)]


def moved_model(height: int, width: int):
    """A model whose gates differ from cell to cell."""
    model = build_model(random_config(height, width))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.branch.gate.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_it_is_the_mean_over_images_at_the_right_cells(height: int, width: int) -> None:
    model, data = moved_model(height, width), drawn_set(7, height, width)
    gates_HW = gate_map(model, data, batch_size=3)
    assert gates_HW.shape == (height, width)
    order = model.config.order_grid.diagonal()
    expected = np.zeros((height, width))
    for k in range(len(data)):
        tokens_BHW, conditions = data.take(slice(k, k + 1)).tensors(torch.device("cpu"))
        tokens_BN = torch.stack([tokens_BHW[0].flatten()[cell] for cell in order.cells])[None]
        with torch.no_grad():
            gate_N = model(tokens_BN, conditions, order).gate[0, :, 0]
        for position, cell in enumerate(order.cells):
            expected[divmod(cell, width)] += float(gate_N[position]) / len(data)
    np.testing.assert_allclose(gates_HW, expected, atol=1e-6)
    assert (gates_HW[0, 1:] == 1).all() and (gates_HW[1:, 0] == 0).all()
    assert 0 < gates_HW[0, 0] < 1
    inner = gates_HW[1:, 1:]
    assert inner.size < 2 or inner.std() > 1e-4


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_the_image_holds_the_map(height: int, width: int) -> None:
    gates_HW = np.linspace(0, 1, height * width).reshape(height, width)
    image = gate_figure(gates_HW).axes[0].get_images()[0]
    np.testing.assert_array_equal(image.get_array(), gates_HW)
    assert list(image.get_extent()) == [-0.5, width - 0.5, height - 0.5, -0.5] and image.get_clim() == (0, 1)
    assert to_png(gate_figure(gates_HW)).startswith(b"\x89PNG")
    if height > 1 and width > 1:
        inner = inner_figure(gates_HW).axes[0].get_images()[0]
        np.testing.assert_array_equal(inner.get_array(), gates_HW[1:, 1:])
        assert list(inner.get_extent()) == [0.5, width - 0.5, height - 0.5, 0.5]
