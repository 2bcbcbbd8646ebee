"""Cached decoding scale by scale: as a teacher-forced forward, as one image alone, and as a CUDA graph asks."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from flashar_cli.config import Pruning, Sampling
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.decoding.next_scale.plan import ScaleKey
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.nn.sampling import guide, uniform_table
from tests.decoding.next_scale.plain import (
    CASES,
    conditions_of,
    decode,
    decode_with,
    model_of,
    num_choices,
    plan_of,
    uniform_of,
)
from tests.decoding.test_plan import GraphSafe
from tests.models.next_scale.test_condition import alone

PLAIN, GUIDED = Sampling(), Sampling(cfg_scale=2.5)
FILTERED = Sampling(cfg_scale=2.0, temperature=0.8, top_p=0.9, cfg_interval=(0.2, 1.0))
PRUNING = Pruning(ratios=((2, 0.4), (3, 0.5)), first_layer=1, cached_scale=1)


@pytest.fixture(params=CASES)
def case(request):
    """A model with its quantizer, and the last map of an image."""
    config, grid = CASES[request.param]
    return model_of(config), grid


def rows_of(conditions, row):
    return alone(conditions, row) if "mask" in conditions.tensors else conditions[row : row + 1]


@pytest.mark.parametrize("guided", (False, True))
@torch.inference_mode()
def test_cached_logits_are_those_of_one_forward(case, guided):
    parts, grid = case
    model, quantizer = parts
    scales = model.config.scales(grid)
    conditions = conditions_of(model.config, 3)
    rising = [1.0, 1.25, 2.0, 1.5, 2.5][: len(scales)]
    sampling = GUIDED.changed(cfg_schedule=rising) if guided else PLAIN
    tokens, logits = decode(parts, conditions, grid, sampling)
    latents = TokenMaps(model.config, quantizer, scales).inputs(tokens)
    expected = model(latents, conditions, grid)
    sizes = [scale.num_cells for scale in scales]
    if guided:
        unconditional = model(latents, conditions, grid, torch.ones(3, dtype=torch.bool))
        per_token = torch.tensor(rising).repeat_interleave(torch.tensor(sizes))[:, None]
        expected = guide(expected, unconditional, per_token)
    for cached, forced in zip(logits, expected.split(sizes, dim=1), strict=True):
        torch.testing.assert_close(cached.reshape(forced.shape), forced, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pruning", (Pruning(), PRUNING), ids=("scale", "fastvar"))
def test_three_images_are_three_alone(case, pruning):
    parts, grid = case
    conditions, uniform = conditions_of(parts[0].config, 3), uniform_of(parts[0], grid, 3)
    together = decode_with(plan_of(parts, conditions, grid, GUIDED, pruning), conditions, GUIDED, uniform)
    for row in range(3):
        single = rows_of(conditions, row)
        plan = plan_of(parts, single, grid, GUIDED, pruning)
        assert torch.equal(decode_with(plan, single, GUIDED, uniform[row : row + 1]), together[row : row + 1])


@torch.inference_mode()
def test_teacher_forcing_feeds_the_given_tokens(case):
    parts, grid = case
    conditions = conditions_of(parts[0].config, 2)
    tokens, logits = decode(parts, conditions, grid, GUIDED)
    plan = plan_of(parts, conditions, grid, GUIDED)
    plan.load(conditions, GUIDED, torch.zeros(2, num_choices(parts[0], grid)))
    for _ in range(2):  # it starts anew each time
        for found, expected in zip(plan.teacher_forced(tokens), logits, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_each_choice_takes_its_own_number(case):
    """By inverse CDF: the number of a token, or of a bit, in the order of the tokens."""
    parts, grid = case
    model = parts[0]
    tokens, logits = decode(parts, conditions_of(model.config, 2), grid, PLAIN)
    numbers = uniform_of(model, grid, 2)
    cdf = torch.cat(logits, dim=1).double().softmax(dim=-1).cumsum(dim=-1)
    expected = (cdf < numbers[..., None]).sum(dim=-1)
    clear = (cdf - numbers[..., None]).abs().amin(dim=-1) > 1e-6
    assert tokens.dtype == (torch.uint8 if model.config.token_shape else torch.int64)
    assert clear.float().mean() > 0.99 and torch.equal(tokens.reshape(2, -1)[clear].long(), expected[clear])


def test_guidance_of_a_part_of_the_tokens():
    """The first of 36 tokens at 0, 1, 3, 9 and 21."""
    config, grid = CASES["var"]
    parts, conditions = model_of(config), conditions_of(config, 1)
    plan = plan_of(parts, conditions, grid, GUIDED)
    plan.load(conditions, GUIDED.changed(cfg_interval=(0.05, 0.5)), torch.zeros(1, 36))
    assert plan.cfg_scales.tolist() == [1.0, 1.0, 2.5, 2.5, 1.0]
    rising = GUIDED.changed(cfg_schedule="linear", cfg_scale=3.0)
    plan.load(conditions, rising, torch.zeros(1, 36))
    assert plan.cfg_scales.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    shorter = plan_of(parts, conditions, grid, GUIDED, Pruning(num_scales=3))
    for sampling, given in ((rising, [1.0, 1.5, 2.0]), (GUIDED, [2.5, 2.5, 2.5])):
        shorter.load(conditions, sampling, torch.zeros(1, 36))
        assert shorter.cfg_scales.tolist() == given
    shorter.load(conditions, GUIDED.changed(cfg_interval=(0.05, 0.5)), torch.zeros(1, 36))
    assert shorter.cfg_scales.tolist() == [1.0, 1.0, 2.5]  # skipped tokens count


def test_a_schedule_of_another_number_of_scales_is_refused():
    config, grid = CASES["var"]
    parts, conditions = model_of(config), conditions_of(config, 1)
    sampling = GUIDED.changed(cfg_schedule=(1.0, 2.0, 2.0, 3.0))
    with pytest.raises(FlasharError, match="--cfg-schedule has 4 scales; expected 5"):
        plan_of(parts, conditions, grid, sampling).load(conditions, sampling, torch.zeros(1, 36))


def test_a_key_says_whether_captions_are_padded():
    config, grid = CASES["tall"]
    model, _ = model_of(config)
    keys = [ScaleKey.of("scale", model, conditions_of(config, 2, lengths), PLAIN, grid) for lengths in ((4, 6), (5, 5))]
    assert [key.padded for key in keys] == [True, False] and [key.prefix_length for key in keys] == [6, 5]
    assert ScaleKey.of("scale", model, conditions_of(config, 2), PLAIN).grid == config.order_grid
    assert len({*keys, *keys}) == 2


@torch.inference_mode()
def run_guarded(plan, device: str) -> int:
    with GraphSafe(device) as guard:
        plan.sample(0, plan.prefix())
        plan.advance(1, plan.num_steps)
        plan.tokens()
    return guard.num_calls


@pytest.mark.parametrize("pruning", (Pruning(), PRUNING), ids=("scale", "fastvar"))
@pytest.mark.parametrize("sampling", (PLAIN, GUIDED.changed(temperature=0), FILTERED), ids=("plain", "greedy", "all"))
def test_decoding_is_graph_safe(case, sampling, pruning):
    parts, grid = case
    conditions = conditions_of(parts[0].config, 2)
    plan = plan_of(parts, conditions, grid, sampling, pruning)
    plan.load(conditions, sampling, uniform_of(parts[0], grid, 2))
    assert run_guarded(plan, "cpu") > 100


@pytest.mark.parametrize("name", CASES)
def test_decoding_never_touches_another_device(name, monkeypatch):
    """On ``meta`` there are no values to wait for, and the host's tensors are on another device."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: nullcontext())  # PyTorch's knows no meta
    config, grid = CASES[name]
    model, quantizer = model_of(config)
    parts = model.to("meta"), quantizer.to("meta")
    assert run_guarded(plan_of(parts, conditions_of(config, 2), grid, FILTERED, PRUNING), "meta") > 100


def test_buffers_stay_and_hold_nothing_of_the_image_before(case):
    parts, grid = case
    conditions, other = conditions_of(parts[0].config, 2), conditions_of(parts[0].config, 2, (6, 3))
    uniform = uniform_table(0, 0, 4, num_choices(parts[0], grid))
    plan = plan_of(parts, conditions, grid, FILTERED, PRUNING)
    addresses = [buffer.data_ptr() for buffer in plan.buffers()]
    first = decode_with(plan, conditions, FILTERED, uniform[:2])
    decode_with(plan, other, FILTERED.changed(temperature=1.3), uniform[2:])
    assert torch.equal(decode_with(plan, conditions, FILTERED, uniform[:2]), first)
    assert [buffer.data_ptr() for buffer in plan.buffers()] == addresses


def test_half_precision_decodes_into_buffers_of_it():
    config, grid = CASES["tall"]
    model, quantizer = model_of(config)
    plan = plan_of((model.bfloat16(), quantizer), conditions_of(config, 2), grid, GUIDED, PRUNING)
    assert {cache.keys.dtype for cache in plan.caches} == {plan.blocks.outputs.dtype} == {torch.bfloat16}
    assert plan.latent.dtype == torch.float32
    tokens = decode_with(plan, conditions_of(config, 2), GUIDED, uniform_of(model, grid, 2))
    assert tokens.shape == (2, 54, 3) and tokens.max() == 1


def test_attention_of_equal_captions_has_no_mask(monkeypatch):
    """Flash kernels take none."""
    from flashar_cli.models.next_scale import layers

    masks = []
    attend = layers.attend
    monkeypatch.setattr(
        layers, "attend", lambda q, k, v, mask, *rest: masks.append(mask) or attend(q, k, v, mask, *rest)
    )
    config, grid = CASES["tall"]
    parts = model_of(config)
    for lengths, masked in (((5, 5), 0), ((5, 4), 16)):  # pooling, and cross-attention of three blocks at five scales
        conditions = conditions_of(config, 2, lengths)
        plan = plan_of(parts, conditions, grid, GUIDED)
        masks.clear()
        decode_with(plan, conditions, GUIDED, uniform_of(parts[0], grid, 2))
        assert sum(mask is not None for mask in masks) == masked and len(masks) == 31


def test_a_grid_without_a_schedule_is_refused():
    config, _ = CASES["tall"]
    parts = model_of(config)
    with pytest.raises(FlasharError, match="the grid is 4x7, for which this model has no schedule"):
        plan_of(parts, conditions_of(config, 1), Grid(4, 7), PLAIN)
