"""Where on the grid the model relies on each head: a map of the mean gate of every target cell.

Letters: B batch, H grid rows, W grid columns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.config.recipe import StageSettings
from flashar_cli.data.tokens import TokenSet
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.reporting.figures import COLOURS, INK, new_figure, whole_numbers
from flashar_cli.training.losses import losses_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Mean gate of each target cell over the validation images: 1 takes the horizontal prediction alone (from the "
    "left), 0 the vertical alone (from above). By definition row 0 is 1 and column 0 is 0, as they have only one "
    "neighbour; the corner has a gate of its own, on the last prefix token."
)


@torch.inference_mode()
def gate_map(
    model: FlasharModel, data: TokenSet, batch_size: int, dtype: torch.dtype = torch.float32
) -> NDArray[np.float64]:
    """[H, W] mean gate in [0, 1] over all images of ``data``, teacher-forced in diagonal order."""
    model.eval()
    order = model.config.order_grid.diagonal()
    total = np.zeros((order.grid.height, order.grid.width))
    for start in range(0, len(data), batch_size):
        tokens_BHW, conditions = data.take(slice(start, start + batch_size)).tensors(model.device)
        tokens_BN = order.from_raster(tokens_BHW)
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            # The losses compute the gates without the logits of all cells at once.
            read = partial(losses_of, model, tokens_BN=tokens_BN, settings=StageSettings())
            gate_BN = model(tokens_BN, conditions, order, read=read).gate
        total += order.to_raster(gate_BN).double().sum(dim=0).cpu().numpy()
    return total / len(data)


def gate_figure(gates_HW: NDArray[np.float64]) -> Figure:
    """The map, from the colour of the vertical head over grey to that of the horizontal one."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("gate", [COLOURS["vertical"], "#e4e4e4", COLOURS["horizontal"]])
    figure, bar = _map(gates_HW, 0, cmap=colours, vmin=0, vmax=1)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0 vertical", "0.25", "0.5", "0.75", "1 horizontal"])
    return figure


def inner_figure(gates_HW: NDArray[np.float64]) -> Figure:
    """The map without row 0 and column 0, which only one head predicts; its colours span the least to greatest gate."""
    return _map(gates_HW[1:, 1:], 1, cmap="viridis")[0]


def _map(values: NDArray[np.float64], first: int, **colouring: Any) -> tuple[Figure, Any]:
    """A figure of values, whose rows and columns count from ``first``, and its colour bar."""
    height, width = values.shape
    figure, axes = new_figure(5.0, min(8.0, max(2.0, 4.0 * height / width)))
    edges = (first - 0.5, first + width - 0.5, first + height - 0.5, first - 0.5)
    image = axes.imshow(values, interpolation="nearest", extent=edges, **colouring)
    axes.grid(False)
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    whole_numbers(axes.xaxis, axes.yaxis)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_edgecolor(INK)
    return figure, bar
