"""Cached decoding against teacher forcing, and the degenerate grids whose answer is known."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from flashar_cli.config import CaptionPrefix, default_gate_dim
from flashar_cli.decoding.decoder import choose_order, decode
from flashar_cli.decoding.generate import generate_tokens
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams, guide, uniform_table
from tests.tiny_models import build_model, random_config

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4), (16, 16)]
GATES = ("hidden", "logits", "scalar", "mean")
# The large grid takes a second a case, so there it is the case that has everything.
CASES = [
    (shape, gate, scale, batch)
    for shape, gate, scale, batch in product(GRIDS, GATES, (1.0, 2.0), (1, 3))
    if shape != (16, 16) or (scale, batch) == (2.0, 3)
]


def make_model(
    height: int, width: int, gate: str, captions: bool = False, layer: int = 1, depth: int = 1
) -> FlasharModel:
    """Random weights that make gates and heads differ from cell to cell."""
    config = random_config(height, width, tokenizer=False)
    branch = {"layer": layer, "depth": depth, "gate": gate, "gate_dim": default_gate_dim(gate, 32, 32)}
    changes = (
        {"branch": branch, "prefix": CaptionPrefix(feature_dim=6, length=7).model_dump()}
        if captions
        else {"branch": branch}
    )
    model = build_model(type(config).model_validate({**config.model_dump(), **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim != 1:
                parameter.normal_(std=0.3, generator=generator)
    return model


def make_conditions(batch: int, captions: bool) -> Conditions:
    if not captions:
        return Conditions(labels=torch.arange(batch) % 10)
    lengths = torch.tensor([7, 3, 1])[:batch, None]
    mask = (torch.arange(7)[None] >= 7 - lengths).float()
    return Conditions(features=torch.randn(batch, 7, 6, generator=torch.Generator().manual_seed(2)), mask=mask)


def teacher_forced(model: FlasharModel, codes: torch.Tensor, conditions: Conditions, order: Order, scale: float):
    """Logits [B, N, V] in the order, with guidance."""
    sequence = order.from_raster(codes)
    with torch.no_grad():
        cond = model(sequence, conditions, order).logits
        if scale == 1:
            return cond
        drop = torch.ones(len(codes), dtype=torch.bool)
        return guide(cond, model(sequence, conditions, order, drop).logits, scale)


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize(("shape", "gate", "scale", "batch"), CASES)
def test_cached_decoding_equals_teacher_forcing(shape, gate, scale, batch, captions):
    model = make_model(*shape, gate, captions)
    conditions = make_conditions(batch, captions)
    uniform = uniform_table(0, 0, batch, shape[0] * shape[1])
    for order in (model.config.order_grid.diagonal(), model.config.order_grid.raster()):
        seen = []
        params = SamplingParams(cfg_scale=scale)
        codes = decode(model, conditions, order, params, uniform, lambda step, logits, seen=seen: seen.append(logits))
        assert codes.shape == (batch, *shape)
        expected = teacher_forced(model, codes, conditions, order, scale)
        torch.testing.assert_close(torch.cat(seen, dim=1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("layer", "depth"), ((0, 1), (2, 1), (1, 3), (0, 2)))
def test_branch_anywhere_and_of_any_depth(layer, depth):
    model = make_model(3, 5, "hidden", layer=layer, depth=depth)
    order, conditions, seen = model.config.order_grid.diagonal(), make_conditions(3, False), []
    codes = decode(model, conditions, order, SamplingParams(), torch.rand(3, 15), lambda _, logits: seen.append(logits))
    expected = teacher_forced(model, codes, conditions, order, 1.0)
    torch.testing.assert_close(torch.cat(seen, dim=1), expected, atol=1e-4, rtol=0)


def test_one_row_decodes_as_raster_once_the_corner_gate_is_one():
    model = make_model(1, 6, "scalar")
    with torch.no_grad():
        model.branch.gate.logit.fill_(100.0)
    uniform, conditions, grid = torch.rand(3, 6), make_conditions(3, False), model.config.order_grid
    flashar = decode(model, conditions, grid.diagonal(), SamplingParams(), uniform)
    assert torch.equal(flashar, decode(model, conditions, grid.raster(), SamplingParams(), uniform))


def test_one_column_uses_the_vertical_head_alone():
    model = make_model(6, 1, "scalar")
    with torch.no_grad():
        model.branch.gate.logit.fill_(-100.0)
    order, conditions = model.config.order_grid.diagonal(), make_conditions(2, False)
    with torch.no_grad():
        prediction = model(torch.randint(0, 32, (2, 6)), conditions, order)
    torch.testing.assert_close(prediction.logits, prediction.vertical)


def test_fusion_rule_cell_by_cell():
    model = make_model(3, 4, "hidden")
    order = model.config.order_grid.diagonal()
    with torch.no_grad():
        prediction = model(torch.randint(0, 32, (2, 12)), make_conditions(2, False), order)
    fused, horizontal, vertical = (
        order.to_raster(part, trailing=1) for part in (prediction.logits, prediction.horizontal, prediction.vertical)
    )
    gate = order.to_raster(prediction.gate, trailing=1)
    assert torch.equal(fused[:, 0, 1:], horizontal[:, 0, 1:])
    assert torch.equal(fused[:, 1:, 0], vertical[:, 1:, 0])
    for row, col in [(0, 0), (1, 1), (2, 3)]:
        g = gate[:, row, col]
        torch.testing.assert_close(fused[:, row, col], g * horizontal[:, row, col] + (1 - g) * vertical[:, row, col])
    assert float(gate[:, 1:, 1:].std()) > 0.01


@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_each_cell_is_drawn_with_its_own_number(decoder):
    """By a walk over the probabilities: the first code at which their sum exceeds the cell's number."""
    model, seen = make_model(3, 5, "hidden"), []
    order, uniform = choose_order(model, decoder), uniform_table(3, 0, 2, 15)
    codes = decode(
        model, make_conditions(2, False), order, SamplingParams(), uniform, lambda _, logits: seen.append(logits)
    )
    sums = order.to_raster(torch.cat(seen, dim=1), trailing=1).double().softmax(-1).cumsum(-1)
    near = 1e-5  # where a sum falls on the number itself, rounding decides
    numbers = uniform.reshape(2, 3, 5, 1)
    drawn = sums.gather(-1, codes[..., None])
    before = torch.where(codes[..., None] > 0, sums.gather(-1, (codes[..., None] - 1).clamp_min(0)), 0.0)
    assert bool((before - near <= numbers).all()) and bool((numbers < drawn + near).all())


@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_pictures_do_not_depend_on_their_batch(decoder):
    model = make_model(4, 4, "hidden")
    order = choose_order(model, decoder)
    whole = [
        torch.cat(
            list(generate_tokens(model, make_conditions(3, False), 8, order, SamplingParams(cfg_scale=1.5), 5, size))
        )
        for size in (1, 3, 8)
    ]
    assert torch.equal(whole[0], whole[1]) and torch.equal(whole[1], whole[2])


def test_guidance_interval_counts_cells():
    model = make_model(4, 4, "mean")
    conditions, order = make_conditions(1, False), model.config.order_grid.raster()
    uniform = torch.rand(1, 16)
    logits: dict[str, list[torch.Tensor]] = {}
    for name, interval in (("all", (0.0, 1.0)), ("half", (0.0, 0.5))):
        seen = logits.setdefault(name, [])
        params = SamplingParams(cfg_scale=3.0, cfg_interval=interval, temperature=0)
        codes = decode(model, conditions, order, params, uniform, lambda _, step, seen=seen: seen.append(step))
    cond = teacher_forced(model, codes, conditions, order, 1.0)
    half = torch.cat(logits["half"], dim=1)
    assert torch.equal(half[:, :8], torch.cat(logits["all"], dim=1)[:, :8])
    torch.testing.assert_close(half[:, 8:], cond[:, 8:], atol=1e-4, rtol=0)


def test_number_of_forwards():
    model = make_model(4, 6, "hidden")
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    model.backbone.blocks[0].register_forward_hook(count)
    decode(model, make_conditions(1, False), model.config.order_grid.diagonal(), SamplingParams(), torch.rand(1, 24))
    assert calls == 4 + 6 - 1


def test_flashar_needs_a_branch():
    with pytest.raises(FlasharError, match="no vertical branch"):
        choose_order(build_model(random_config(branch=False)), "flashar")


def test_eager_attention_agrees():
    model = make_model(3, 5, "hidden", captions=True)
    conditions, order = make_conditions(3, True), model.config.order_grid.diagonal()
    codes = torch.randint(0, 32, (3, 15))
    with torch.no_grad():
        fused = model(codes, conditions, order).logits
        model.set_attention("eager")
        torch.testing.assert_close(model(codes, conditions, order).logits, fused, atol=1e-4, rtol=0)
