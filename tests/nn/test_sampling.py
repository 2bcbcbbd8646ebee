from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashar_cli.config import Sampling
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.nn.hashing import hash_uniform
from flashar_cli.nn.sampling import SamplingKind, SamplingValues, filter_logits, guide, sample, uniform_table


def draw(logits, uniform, params):
    return sample(logits, uniform, SamplingKind.of(params), SamplingValues.of(params))


def test_table_depends_on_its_three_indices_only():
    whole = uniform_table(7, 0, 8, 12)
    assert torch.equal(whole[3:5], uniform_table(7, 3, 2, 12))
    assert not torch.equal(whole, uniform_table(8, 0, 8, 12))
    assert float(whole.min()) >= 0 and float(whole.max()) < 1


def test_hash_is_uniform_and_uncorrelated():
    # 2^16 draws: the mean of a uniform has standard error 0.0011, each of 16 bins expects 4096 +- 62.
    values = hash_uniform(0, np.arange(256)[:, None], np.arange(256)[None, :])
    assert abs(values.mean() - 0.5) < 0.005
    counts, _ = np.histogram(values, bins=16, range=(0, 1))
    assert abs(counts - 4096).max() < 6 * 62
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.02


def test_inverse_cdf_follows_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 1000, 4)
    uniform = (torch.arange(1000) + 0.5)[None] / 1000
    counts = torch.bincount(draw(logits, uniform, Sampling()).flatten(), minlength=4)
    assert counts.tolist() == [100, 200, 300, 400]


@pytest.mark.parametrize("uniform", (0.0, 0.3, 1 - 2**-24))
def test_filtered_tokens_are_never_drawn(uniform):
    torch.manual_seed(0)
    logits = torch.randn(4, 50, 64) * 3
    params = Sampling(top_k=5, top_p=0.8, temperature=0.7)
    tokens = draw(logits, torch.full((4, 50), uniform), params)
    kept = filter_logits(logits / 0.7, 5, torch.tensor(0.8)).isfinite()
    assert bool(kept.gather(-1, tokens[..., None]).all())


def test_min_p_keeps_what_is_likely_enough_beside_the_best():
    logits = torch.tensor([[[0.5, 0.25, 0.15, 0.1], [0.01, 0.01, 0.08, 0.9]]]).log() + 3
    kept = filter_logits(logits, 0, min_p=torch.tensor(0.29)).isfinite()
    assert kept.tolist() == [[[True, True, True, False], [False, False, False, True]]]
    # The uniform number 0.6 falls into the second of the three that are left: 0.5 / 0.9 < 0.6 < 0.75 / 0.9.
    uniform = torch.full((1, 2), 0.6)
    assert draw(logits, uniform, Sampling(min_p=0.29)).tolist() == [[1, 3]]
    # A low temperature makes the best stand out further: (0.25 / 0.5) ** 2 = 0.25.
    assert draw(logits, torch.full((1, 2), 0.999), Sampling(min_p=0.29, temperature=0.5)).tolist() == [[0, 3]]
    assert draw(logits, torch.full((1, 2), 0.999), Sampling(min_p=0.29)).tolist() == [[2, 3]]


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([[[0.5, 0.25, 0.15, 0.1]]]).log()
    assert filter_logits(logits, 2, None).isfinite().tolist() == [[[True, True, False, False]]]
    assert filter_logits(logits, 0, torch.tensor(0.6)).isfinite().tolist() == [[[True, True, False, False]]]
    assert filter_logits(logits, 0, torch.tensor(0.4)).isfinite().tolist() == [[[True, False, False, False]]]
    assert filter_logits(logits, 9, None).isfinite().all()


def test_what_ties_with_the_kth_is_kept():
    logits = torch.tensor([[[3.0, 1.0, 2.0, 2.0, 0.0]]])
    kept = [filter_logits(logits, k, None)[0, 0].isfinite().nonzero().flatten().tolist() for k in (1, 2, 3, 4, 5)]
    assert kept == [[0], [0, 2, 3], [0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_a_set_that_reaches_top_p_exactly_is_not_widened():
    """Halves, quarters and eighths add up without rounding."""
    logits = torch.tensor([[[0.125, 0.5, 0.125, 0.25]]]).log2() * math.log(2)
    probabilities = logits.softmax(-1)
    assert probabilities.tolist() == [[[0.125, 0.5, 0.125, 0.25]]]
    kept = {p: filter_logits(logits, 0, torch.tensor(p)).isfinite()[0, 0].tolist() for p in (0.5, 0.625, 0.75, 0.8)}
    assert kept[0.5] == [False, True, False, False]
    assert kept[0.625] == kept[0.75] == [False, True, False, True]
    assert sum(kept[0.8]) == 3 and sum(filter_logits(logits, 0, torch.tensor(1.0)).isfinite()[0, 0].tolist()) == 4


def test_temperature_acts_before_top_p():
    """At temperature 1/2 probabilities are squared: 4 to 1 becomes 16 to 1, so the best alone reaches 0.9."""
    logits, uniform = torch.tensor([[[0.8, 0.2]]]).log().expand(1, 100, 2), torch.linspace(0, 0.99, 100)[None]
    cool = draw(logits, uniform, Sampling(temperature=0.5, top_p=0.9))
    assert not cool.any()
    assert draw(logits, uniform, Sampling(temperature=1.0, top_p=0.9)).sum() == 20
    # 0.8^2 / (0.8^2 + 0.2^2) is 0.941: of a hundred numbers the last five sample the other token.
    assert draw(logits, uniform, Sampling(temperature=0.5)).sum() == 5


def test_a_number_at_the_bound_of_two_tokens_draws_the_later():
    logits = torch.zeros(1, 4, 4)
    uniform = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    assert draw(logits, uniform, Sampling()).tolist() == [[0, 1, 2, 3]]


def test_guidance_acts_from_its_first_cell_to_before_its_last():
    params = Sampling(cfg_scale=2.0, cfg_interval=(0.25, 0.75))
    assert params.step_scales(range(8), 8) == [1, 1, 2, 2, 2, 2, 1, 1]
    assert Sampling(cfg_scale=2.0).step_scales(range(8), 8) == [2] * 8
    assert Sampling(cfg_scale=1.0).step_scales([0, 4], 8) == [1, 1]


def test_linear_guidance_grows_from_one_to_its_scale():
    params = Sampling(cfg_scale=3.0, cfg_schedule="linear")
    assert params.step_scales([0, 1, 5, 14, 30], 55) == [1, 1.5, 2, 2.5, 3]  # by step, however many cells it has
    assert params.changed(cfg_interval=(0.0, 0.5)).step_scales([0, 1, 5, 14, 30], 55) == [1, 1.5, 2, 2.5, 1]
    assert params.step_scales([0], 1) == [1]


def test_a_schedule_has_a_scale_for_each_step():
    params = Sampling(cfg_schedule=(1.0, 2.0, 4.0), cfg_scale=9.0, cfg_interval=(0.0, 0.5))
    assert params.guided and params.step_scales([0, 1, 5], 14) == [1, 2, 4]
    assert not Sampling(cfg_schedule=(1.0, 1.0), cfg_scale=9.0).guided
    with pytest.raises(FlasharError, match="--cfg-schedule has 3 scales; expected 2"):
        params.step_scales([0, 1], 5)


def test_temperature_zero_is_argmax():
    logits = torch.randn(2, 3, 16)
    assert torch.equal(draw(logits, torch.rand(2, 3), Sampling(temperature=0)), logits.argmax(-1))


def test_the_largest_number_below_one_samples_the_last_token():
    """What is compared with the cdf is below its last value: so tokens that a filter left out are not drawn."""
    largest, generator = torch.tensor(1 - 2**-24), torch.Generator().manual_seed(0)
    assert torch.nextafter(largest, torch.tensor(2.0)) == 1
    totals = torch.rand(100_000, generator=generator) * 2.0 ** torch.randint(-3, 3, (100_000,), generator=generator)
    powers = 2.0 ** torch.arange(-20.0, 20.0)
    above, below = (torch.nextafter(powers, powers * factor) for factor in (2, 0.5))
    totals = torch.cat([totals, powers, above, below])
    assert bool((largest * totals < totals).all())


@pytest.mark.parametrize("temperature", (0.5, 1.0, 1.7))
def test_temperature_divides_the_logits(temperature):
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(2, 50, 16, generator=generator), torch.rand(2, 50, generator=generator)
    expected = (uniform[..., None] >= (logits.double() / temperature).softmax(-1).cumsum(-1)).sum(-1)
    assert torch.equal(draw(logits, uniform, Sampling(temperature=temperature)), expected)


def test_guidance_by_hand():
    cond, uncond = torch.tensor([1.0, 0.1, -3.0]), torch.tensor([0.5, 0.7, 2.0])
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    for scale in (0.3, 1.0, 2.0, 7.5):
        torch.testing.assert_close(guide(cond, uncond, torch.tensor(scale)), uncond + scale * (cond - uncond))
    assert torch.equal(guide(cond, uncond, torch.tensor(1.0)), cond)


@pytest.mark.parametrize(
    "settings",
    (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"cfg_scale": -0.5},
        {"cfg_interval": (0.5, 0.5)},
        {"cfg_interval": (0.0, 1.5)},
    ),
)
def test_out_of_range_settings_are_refused(settings):
    with pytest.raises(FlasharError, match="expected|finite"):
        Sampling().changed(**settings)


@pytest.mark.parametrize("temperature", (bounds.TEMPERATURE.least, 1.0, bounds.TEMPERATURE.most))
@pytest.mark.parametrize("top_p", (bounds.TOP_P.least, 1.0))
@pytest.mark.parametrize("scale", (bounds.CFG_SCALE.least, bounds.CFG_SCALE.most))
def test_what_is_within_bounds_can_be_computed(temperature, top_p, scale):
    generator = torch.Generator().manual_seed(0)
    cond, uncond = (300 * torch.randn(2, 5, 64, generator=generator) for _ in range(2))
    params = Sampling(cfg_scale=scale, temperature=temperature, top_p=top_p)
    logits = guide(cond, uncond, scale)
    tokens = draw(logits, torch.rand(2, 5, generator=generator), params)
    assert bool(((tokens >= 0) & (tokens < 64)).all())
    if temperature == bounds.TEMPERATURE.least or top_p == bounds.TOP_P.least:
        assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("name", ("temperature", "top_p", "min_p"))
def test_what_float32_has_no_room_for_is_refused(name):
    for value in (5e-324, 1e-46, 1e-38, -0.1, float("nan"), float("inf"), 10**400):
        with pytest.raises(FlasharError, match=f"{name}: (expected a number from 1e-06|Input should be a)"):
            Sampling().changed(**{name: value})
