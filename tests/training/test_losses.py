"""Loss terms against sums over cells, written out."""

from __future__ import annotations

import math

import pytest
import torch

from flashar_cli.grid import Grid
from flashar_cli.models.flashar import Prediction
from flashar_cli.models.targets import grid_targets
from flashar_cli.recipe import StageSettings
from flashar_cli.training.losses import adaptation_loss, gate_entropy, raster_loss

ORDER = Grid(3, 4).diagonal()
CELLS = ORDER.cells
BELOW = [k for k, cell in enumerate(CELLS) if cell >= 4 or cell == 0]
RIGHT = [k for k, cell in enumerate(CELLS) if cell % 4 or cell == 0]
BOTH = [k for k in BELOW if k in RIGHT]


def drawn() -> tuple[Prediction, torch.Tensor, torch.Tensor]:
    """A prediction of two pictures of 3x4 cells and 5 codes, their codes, and a teacher's logits."""
    generator = torch.Generator().manual_seed(0)
    fused, horizontal, vertical, teacher = 2 * torch.randn(4, 2, 12, 5, generator=generator)
    gate = torch.rand(2, 12, 1, generator=generator)
    codes = torch.randint(5, (2, 12), generator=generator)
    return Prediction(fused, horizontal, vertical, gate, grid_targets(ORDER, torch.device("cpu"))), codes, teacher


def nats(logits: torch.Tensor, codes: torch.Tensor, cells: list[int]) -> float:
    """Mean cross-entropy over these places of both pictures."""
    values = []
    for b in range(2):
        for k in cells:
            weights = [math.exp(value) for value in logits[b, k].tolist()]
            values.append(-math.log(weights[int(codes[b, k])] / sum(weights)))
    return sum(values) / len(values)


def test_each_head_counts_where_it_predicts():
    prediction, codes, _ = drawn()
    settings = StageSettings(vertical_weight=0.5, horizontal_weight=0.25)
    losses = adaptation_loss(prediction, codes, settings, None)
    expected = [
        nats(prediction.logits, codes, list(range(12))),
        nats(prediction.vertical, codes, BELOW),
        nats(prediction.horizontal, codes, RIGHT),
    ]
    assert [float(part) for part in (losses.fused, losses.vertical, losses.horizontal)] == pytest.approx(expected)
    assert float(losses.total) == pytest.approx(expected[0] + 0.5 * expected[1] + 0.25 * expected[2])
    assert losses.distill is None and losses.gate_entropy is None


@pytest.mark.parametrize("heat", (1.0, 3.0))
def test_distillation_is_the_divergence_from_the_teacher_times_the_squared_temperature(heat):
    prediction, codes, teacher = drawn()
    settings = StageSettings(backbone_lr_factor=0.0, distill_weight=0.2, distill_temperature=heat, vertical_weight=0.0)
    losses = adaptation_loss(prediction, codes, settings, teacher)
    values = []
    for b in range(2):
        for k in BELOW:
            p, q = ((logits[b, k].double() / heat).softmax(-1).tolist() for logits in (teacher, prediction.vertical))
            values.append(heat**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    distill = sum(values) / len(values)
    assert float(losses.distill) == pytest.approx(distill, rel=1e-5)
    assert float(losses.total) == pytest.approx(float(losses.fused) + 0.2 * distill, rel=1e-5)


def test_undecided_gates_are_rewarded():
    prediction, codes, _ = drawn()
    gates = [float(prediction.gate[b, k]) for b in range(2) for k in BOTH]
    entropy = sum(-g * math.log2(g) - (1 - g) * math.log2(1 - g) for g in gates) / len(gates)
    losses = adaptation_loss(prediction, codes, StageSettings(gate_entropy_weight=0.3, vertical_weight=0.0), None)
    assert float(losses.gate_entropy) == pytest.approx(entropy, rel=1e-5)
    assert float(losses.total) == pytest.approx(float(losses.fused) - 0.3 * entropy, rel=1e-5)
    assert float(losses.gate_mean) == pytest.approx(sum(gates) / len(gates), rel=1e-5)
    prediction.gate.fill_(0.5)
    assert float(gate_entropy(prediction)) == pytest.approx(1.0)
    prediction.gate.fill_(1.0)
    assert float(gate_entropy(prediction)) == pytest.approx(0.0, abs=1e-4)


def test_a_base_learns_from_all_cells():
    prediction, codes, _ = drawn()
    losses = raster_loss(prediction, codes)
    assert float(losses.total) == float(losses.fused) == pytest.approx(nats(prediction.logits, codes, list(range(12))))
