"""Averages of weights against the closed form."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.training.ema import Ema


@pytest.mark.parametrize("decay", (0.15, 0.9))
def test_closed_form(decay):
    """The weights of w_0, w_1, w_2, w_3 are products of decays, which begin with 1/10, 2/11, 3/12."""
    model = torch.nn.Linear(2, 1, bias=False)
    values = torch.tensor([[[5.0, -1.0]], [[2.0, 3.0]], [[-4.0, 8.0]], [[1.0, 0.5]]])
    with torch.no_grad():
        model.weight.copy_(values[0])
        ema = Ema(model, decay)
        for update, value in enumerate(values[1:]):
            model.weight.copy_(value)
            ema.update(update)
    a, b, c = (min(decay, own) for own in (1 / 10, 2 / 11, 3 / 12))
    shares = torch.tensor([a * b * c, (1 - a) * b * c, (1 - b) * c, 1 - c])
    expected = (shares[:, None, None] * values).sum(0)
    assert torch.equal(model.weight, values[3])
    with ema.swapped_in():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, values[3])
    with pytest.raises(KeyboardInterrupt), ema.swapped_in():
        raise KeyboardInterrupt
    assert torch.equal(model.weight, values[3])
    ema.swap()
    torch.testing.assert_close(model.weight.detach(), expected)
