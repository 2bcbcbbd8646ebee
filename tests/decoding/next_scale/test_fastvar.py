"""Cached token pruning against slow references in float64 and a forward without a cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flashar_cli.config import Pruning, Sampling
from flashar_cli.decoding.costs import Workload
from flashar_cli.decoding.next_scale.costs import scale_bytes, scale_costs
from flashar_cli.decoding.next_scale.fastvar import restore, select
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.nn.masks import scale_mask
from flashar_cli.nn.sampling import guide
from tests.decoding.next_scale.plain import (
    CASES,
    conditions_of,
    decode,
    decode_with,
    model_of,
    plan_of,
    uniform_of,
)

GUIDED = Sampling(cfg_scale=2.5)
PRUNING = Pruning(ratios=((3, 0.4), (4, 0.5)), first_layer=1, cached_scale=2)


def kept_by_hand(x_RSD: Tensor, num_kept: int) -> Tensor:
    """bool [R, S]: True for the tokens farthest from the mean token; no ties, not even nearly."""
    kept = torch.zeros(x_RSD.shape[:2], dtype=torch.bool)
    for row, x_SD in enumerate(x_RSD.double()):
        mean = [sum(values) / len(values) for values in x_SD.T.tolist()]
        scores = [sum((value - centre) ** 2 for value, centre in zip(x, mean, strict=True)) for x in x_SD.tolist()]
        order = sorted(range(len(scores)), key=lambda token: -scores[token])
        assert scores[order[num_kept - 1]] > (1 + 1e-5) * scores[order[num_kept]]
        kept[row, order[:num_kept]] = True
    return kept


def restored_by_hand(output_RSD: Tensor, size: Grid, new_size: Grid) -> Tensor:
    """float64 [R, S', D]: each token is the mean of all tokens of the smaller map that touch its area."""
    found = []
    for row in range(new_size.height):
        rows = range(size.height * row // new_size.height, math.ceil(size.height * (row + 1) / new_size.height))
        for col in range(new_size.width):
            cols = range(size.width * col // new_size.width, math.ceil(size.width * (col + 1) / new_size.width))
            sources = [output_RSD[:, size.width * r + c].double() for r in rows for c in cols]
            found.append(sum(sources) / len(sources))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("num_tokens", (5, 28))
def test_selection_by_hand(num_tokens):
    x = torch.randn(3, num_tokens, 16, generator=torch.Generator().manual_seed(0)) + 3
    for num_kept in (1, num_tokens // 2, num_tokens - 1):
        kept = select(x, num_kept, "score")
        scores = (x - x.mean(dim=1, keepdim=True)).square().sum(dim=-1).gather(1, kept)
        assert (scores.diff(dim=1) <= 0).all()
        found = torch.zeros(3, num_tokens, dtype=torch.bool).scatter(1, kept, True)
        assert torch.equal(found, kept_by_hand(x, num_kept))
        assert torch.equal(select(x, num_kept, "raster"), found.nonzero()[:, 1].view(3, num_kept))


@pytest.mark.parametrize("sizes", (((4, 2), (7, 4)), ((2, 4), (3, 8)), ((3, 3), (6, 6)), ((24, 24), (40, 40))))
def test_restoration_by_hand(sizes):
    size, new_size = (Grid(*each) for each in sizes)
    output = torch.randn(2, size.num_cells, 3, generator=torch.Generator().manual_seed(0))
    found = restore(output, size, new_size)
    torch.testing.assert_close(found.double(), restored_by_hand(output, size, new_size), atol=1e-6, rtol=0)


def forward_without_cache(model, latents, conditions, drop, grid, pruning) -> Tensor:
    """All scales at once. A dropped token is nobody's key, and instead of what a part gives it, it gets what the part
    gave to the map that is cached.
    """
    scales = model.config.scales(grid)
    ends = torch.tensor([scale.num_cells for scale in scales]).cumsum(dim=0).tolist()
    places = [slice(end - scale.num_cells, end) for end, scale in zip(ends, scales, strict=True)]
    context = model.read(conditions, drop, model.prefix.padded(conditions))
    parts = [None, *latents.split([scale.num_cells for scale in scales[1:]], dim=1)]
    x = torch.cat([model.embed(scale, scales, part, context) for scale, part in enumerate(parts)], dim=1)
    causal = scale_mask(tuple(scale.num_cells for scale in scales), x.device)
    cached = places[pruning.cached_scale]
    for layer, block in enumerate(model.blocks):
        first, last = pruning.first_layer, len(model.blocks) - 1 if pruning.last_layer is None else pruning.last_layer
        pruned = pruning.ratios if first <= layer <= last else ()
        for part in block.parts:
            kept = torch.ones(x.shape[:2], dtype=torch.bool)
            for scale, ratio in pruned:
                tokens = scales[scale].num_cells
                kept[:, places[scale]] = kept_by_hand(x[:, places[scale]], tokens - int(tokens * ratio))
            update = part(x, context.given(layer, model.rope(grid), causal & kept[:, None, None]))
            for scale, _ in pruned:
                old = restored_by_hand(update[:, cached], scales[pruning.cached_scale], scales[scale])
                fresh = update[:, places[scale]]
                update[:, places[scale]] = torch.where(kept[:, places[scale], None], fresh, old.float())
            x = x + update
    return model.head(x, context.head)


@pytest.mark.parametrize("changes", ({"order": "score"}, {"order": "raster"}, {"last_layer": 1}), ids=str)
@pytest.mark.parametrize("guided", (False, True))
@pytest.mark.parametrize("case", ("var", "tall", "wide", "patches"))
@torch.inference_mode()
def test_pruned_decoding_is_a_forward_without_a_cache(case, guided, changes):
    config, grid = CASES[case]
    parts = model_of(config)
    model, quantizer = parts
    conditions, sampling = conditions_of(config, 3), GUIDED if guided else Sampling()
    pruning = PRUNING.model_copy(update=changes)
    tokens, logits = decode(parts, conditions, grid, sampling, pruning)
    scales = model.config.scales(grid)
    latents = TokenMaps(config, quantizer, scales).inputs(tokens)
    drops = [torch.full((3,), dropped) for dropped in (False, True)]
    expected = [forward_without_cache(model, latents, conditions, drop, grid, pruning) for drop in drops]
    expected = guide(*expected, 2.5) if guided else expected[0]
    sizes = [scale.num_cells for scale in scales]
    for cached, forced in zip(logits, expected.split(sizes, dim=1), strict=True):
        torch.testing.assert_close(cached.reshape(forced.shape), forced, atol=1e-4, rtol=0)


def test_kept_tokens_are_computed_in_the_order_asked_for():
    """Which shows in the keys of a pruned layer: the same ones, lying elsewhere."""
    config, grid = CASES["var"]
    parts, conditions, keys = model_of(config), conditions_of(config, 1), []
    for order in ("score", "raster"):
        plan = plan_of(parts, conditions, grid, Sampling(), PRUNING.model_copy(update={"order": order}))
        decode_with(plan, conditions, Sampling(), uniform_of(parts[0], grid, 1))
        keys.append(plan.caches[1].keys[0, 0, 9:17])  # of the fourth map: 8 of 12 tokens, after 1, 2 and 6
    nearest = torch.cdist(*keys).argmin(dim=1)
    assert nearest.tolist() != list(range(8)) and torch.equal(nearest.sort().values, torch.arange(8))
    torch.testing.assert_close(keys[0], keys[1][nearest], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_dropping_nothing_is_decoding_bit_for_bit(case):
    config, grid = CASES[case]
    parts, conditions = model_of(config), conditions_of(config, 3)
    expected, expected_logits = decode(parts, conditions, grid, GUIDED)
    for pruning in (Pruning(ratios=((2, 0.0), (3, 0.0)), cached_scale=1), Pruning(ratios=((3, 0.01),))):
        tokens, logits = decode(parts, conditions, grid, GUIDED, pruning)
        assert torch.equal(tokens, expected)
        assert all(torch.equal(*pair) for pair in zip(logits, expected_logits, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_skipped_scales_are_left_out_and_change_nothing_before_them(case):
    config, grid = CASES[case]
    parts, conditions = model_of(config), conditions_of(config, 2)
    expected, expected_logits = decode(parts, conditions, grid, GUIDED)
    tokens, logits = decode(parts, conditions, grid, GUIDED, Pruning(num_scales=len(expected_logits) - 2))
    assert len(logits) == len(expected_logits) - 2
    assert torch.equal(tokens, expected[:, : tokens.shape[1]])
    assert all(torch.equal(*pair) for pair in zip(logits, expected_logits, strict=False))


@pytest.mark.parametrize("case", ("var", "tall"))
def test_scales_before_pruned_ones_are_as_they_were(case):
    config, grid = CASES[case]
    parts, conditions = model_of(config), conditions_of(config, 2)
    pairs = list(zip(*(decode(parts, conditions, grid, GUIDED, each)[1] for each in (None, PRUNING)), strict=True))
    assert all(torch.equal(*pair) for pair in pairs[:3]) and not torch.equal(*pairs[3])


def test_only_kept_tokens_have_keys():
    """Of 1, 2, 8, 15 and 28 tokens the last two are pruned to 9 and 14, from the second block on."""
    config, grid = CASES["tall"]
    plan = plan_of(model_of(config), conditions_of(config, 2), grid, GUIDED, PRUNING)
    assert [cache.keys.shape for cache in plan.caches] == [(4, 2, keys, 16) for keys in (54, 34, 34)]
    assert plan.blocks.outputs.shape == (2, 3, 4, 8, 32)
    one = plan_of(
        model_of(config), conditions_of(config, 2), grid, GUIDED, PRUNING.model_copy(update={"last_layer": 1})
    )
    assert [cache.keys.shape[2] for cache in one.caches] == [54, 34, 54] and len(one.blocks.outputs) == 1
    unpruned = plan_of(model_of(config), conditions_of(config, 2), grid, GUIDED, Pruning(num_scales=4))
    assert [cache.keys.shape[2] for cache in unpruned.caches] == [26] * 3 and unpruned.blocks.outputs.numel() == 0


def test_a_model_without_the_layers_to_prune_is_refused():
    config, grid = CASES["tall"]
    with pytest.raises(FlasharError, match="layer 27 is to drop tokens; this model has layers 0 to 2"):
        plan_of(model_of(config), conditions_of(config, 1), grid, GUIDED, Pruning(last_layer=27))


def test_a_smaller_image_need_not_have_the_scales_that_are_pruned_or_cached():
    """Images of four of five scales, of which the fifth is pruned: everything is computed, at any decoder."""
    config, grid = CASES["short"]
    assert len(config.scales(grid)) == 4
    parts, conditions = model_of(config), conditions_of(config, 2)
    expected, _ = decode(parts, conditions, grid, GUIDED)
    pruning = Pruning(ratios=((4, 0.5),), first_layer=1)
    assert torch.equal(decode(parts, conditions, grid, GUIDED, pruning)[0], expected)
    work = Workload(grid, 2, 6, weight_bytes=4)
    assert scale_bytes(config, pruning, work, 1, False) == scale_bytes(config, Pruning(), work, 1, False)
    assert scale_costs(config, pruning, work) == scale_costs(config, Pruning(), work)
    longest = config.with_grids([Grid(6, 6)]).with_fastvar(Pruning(ratios=((4, 0.5),), cached_scale=3)).fastvar
    tiny = Workload(Grid(2, 2), 2, 6, weight_bytes=4)
    small = config.model_copy(update={"schedules": config.schedules.model_copy(update={"lengths": (2, 5)})})
    assert scale_bytes(small, longest, tiny, 1, False) == scale_bytes(small, Pruning(), tiny, 1, False)
