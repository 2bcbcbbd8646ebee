from __future__ import annotations

import numpy as np
import pytest
import torch

from flashar_cli.errors import FlasharError
from flashar_cli.nn.hashing import hash_uniform
from flashar_cli.nn.sampling import SamplingParams, SamplingValues, filter_logits, guide, sample, uniform_table


def draw(logits, uniform, params):
    return sample(logits, uniform, params.kind, SamplingValues.of(params))


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
    counts = torch.bincount(draw(logits, uniform, SamplingParams()).flatten(), minlength=4)
    assert counts.tolist() == [100, 200, 300, 400]


@pytest.mark.parametrize("uniform", (0.0, 0.3, 1 - 2**-24))
def test_filtered_codes_are_never_drawn(uniform):
    torch.manual_seed(0)
    logits = torch.randn(4, 50, 64) * 3
    params = SamplingParams(top_k=5, top_p=0.8, temperature=0.7)
    codes = draw(logits, torch.full((4, 50), uniform), params)
    kept = filter_logits(logits / 0.7, 5, torch.tensor(0.8)).isfinite()
    assert bool(kept.gather(-1, codes[..., None]).all())


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([[[0.5, 0.25, 0.15, 0.1]]]).log()
    assert filter_logits(logits, 2, None).isfinite().tolist() == [[[True, True, False, False]]]
    assert filter_logits(logits, 0, torch.tensor(0.6)).isfinite().tolist() == [[[True, True, False, False]]]
    assert filter_logits(logits, 0, torch.tensor(0.4)).isfinite().tolist() == [[[True, False, False, False]]]
    assert filter_logits(logits, 9, None).isfinite().all()


def test_temperature_zero_is_argmax():
    logits = torch.randn(2, 3, 16)
    assert torch.equal(draw(logits, torch.rand(2, 3), SamplingParams(temperature=0)), logits.argmax(-1))


def test_the_largest_number_below_one_draws_the_last_code():
    """What is compared with the cdf is below its last value: so codes that a filter left out are not drawn."""
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
    assert torch.equal(draw(logits, uniform, SamplingParams(temperature=temperature)), expected)


def test_guidance_by_hand():
    cond, uncond = torch.tensor([1.0, 0.1, -3.0]), torch.tensor([0.5, 0.7, 2.0])
    for scale in (0.0, 0.3, 1.0, 2.0, 7.5):
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
    with pytest.raises(FlasharError, match="expected"):
        SamplingParams(**settings)
