"""Block diffusion with a cache against teacher forcing, and the order in which cells are drawn."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import Sampling
from flashar_cli.decoding import compiled
from flashar_cli.decoding.costs import ForwardCost, Workload
from flashar_cli.decoding.decoders import choose_decoder, decoders_of, get_decoder
from flashar_cli.decoding.diffusion import DiffusionDecoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.static import RASTER
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.nn.sampling import SamplingKind, SamplingValues, guide, sample, uniform_table
from tests.decoding.plain import decode, decode_with
from tests.decoding.test_decoder import make_conditions
from tests.models.test_diffusion import diffusion_model
from tests.tiny_models import build_model, random_config

GRIDS = ((1, 5), (5, 1), (3, 5), (5, 3), (4, 4))


def split(size: int, num_turns: int) -> list[int]:
    """How many cells of a block each forward draws: as even as can be, the larger numbers first."""
    if size == 0:
        return []
    turns = min(size, num_turns)
    return [size // turns + (turn < size % turns) for turn in range(turns)]


@torch.no_grad()
def without_cache(model, conditions, num_turns, sampling, uniform, order):
    """Tokens [B, N] and all logits, by a teacher-forced forward for every step. ``order`` [B, N]: cells of a block with
    lower numbers are drawn first.
    """
    grid, block = model.config.order_grid, model.diffusion.config.block
    batch, num_cells = uniform.shape
    tokens, unknown = torch.zeros(batch, num_cells, dtype=torch.int64), torch.ones(batch, num_cells, dtype=torch.bool)
    scales = torch.tensor(sampling.step_scales(range(num_cells), num_cells))[:, None]  # of each cell, in raster order
    drop, every_logits = torch.zeros(batch, dtype=torch.bool), []
    for first in range(0, num_cells, block):
        last = min(first + block, num_cells)
        # The prefix alone draws the first cell of all.
        for number, count in enumerate(
            [1, *split(last - 1, num_turns)] if first == 0 else split(last - first, num_turns)
        ):
            pair = [model(tokens, conditions, grid.raster(), row, unknown_BN=unknown).logits for row in (drop, ~drop)]
            logits = (guide(*pair, scales) if sampling.guided else pair[0])[:, first:last]
            if first == number == 0:
                every_logits.append(logits[:, :1])
            else:  # the first cell is drawn already but in the first forward of a later block
                every_logits.append(logits if first > 0 and number == 0 else logits[:, 1:])
            sampled = sample(logits, uniform[:, first:last], SamplingKind.of(sampling), SamplingValues.of(sampling))
            for row in range(batch):
                left = [cell for cell in range(first, last) if unknown[row, cell]]
                left.sort(key=lambda cell: (cell != first, order[row, cell]))
                for cell in left[:count]:
                    tokens[row, cell], unknown[row, cell] = sampled[row, cell - first], False
    assert not unknown.any()
    return tokens, every_logits


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize("guidance", ({}, {"cfg_scale": 2.0}, {"cfg_scale": 2.0, "cfg_interval": (0.3, 0.8)}), ids=str)
@pytest.mark.parametrize(("block", "num_turns"), ((4, 1), (4, 2), (4, 3), (4, 9), (5, 2), (12, 4), (1, 1), (40, 3)))
def test_cached_decoding_is_teacher_forced(block, num_turns, guidance, captions):
    model, conditions = diffusion_model(3, 4, block, captions), make_conditions(3, captions)
    sampling, uniform = Sampling(**guidance, temperature=0.9, top_k=20), uniform_table(0, 0, 3, 12)
    decoder, found = DiffusionDecoder(num_turns), []
    plan = decoder.plan(model, None, decoder.key(model, conditions, sampling))
    decode_with(plan, conditions, sampling, uniform, lambda step, logits: found.append(logits.clone()))
    expected, logits = without_cache(model, conditions, num_turns, sampling, uniform, plan.ranks_BN)
    assert len(found) == len(logits) == decoder.num_forwards(model.config, model.config.order_grid)
    for one, other in zip(found, logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)
    assert torch.equal(plan.tokens().flatten(1), expected)


@pytest.mark.parametrize("shape", GRIDS)
def test_every_grid_by_rows(shape):
    model, conditions, (height, width) = diffusion_model(*shape, shape[1]), make_conditions(2, False), shape
    sampling, uniform = Sampling(cfg_scale=1.5), uniform_table(0, 0, 2, height * width)
    plan = DiffusionDecoder(2).plan(model, None, DiffusionDecoder(2).key(model, conditions, sampling))
    decode_with(plan, conditions, sampling, uniform)
    expected, _ = without_cache(model, conditions, 2, sampling, uniform, plan.ranks_BN)
    assert torch.equal(plan.tokens(), expected.view(2, height, width))


def test_blocks_of_one_token_are_raster_decoding():
    model, conditions = diffusion_model(3, 4, 1), make_conditions(3, False)
    sampling, uniform = Sampling(cfg_scale=1.5), uniform_table(0, 0, 3, 12)
    by_blocks = decode(model, conditions, DiffusionDecoder(4), sampling, uniform)
    assert torch.equal(by_blocks, decode(model, conditions, RASTER, sampling, uniform))


def test_orders_are_random_and_the_same_in_any_batch():
    model, conditions = diffusion_model(4, 4, 8), make_conditions(3, False)
    sampling, uniform = Sampling(cfg_scale=1.5), uniform_table(0, 0, 3, 16)
    together = decode(model, conditions, DiffusionDecoder(3), sampling, uniform)
    for row in range(3):
        rows = torch.tensor([row])
        alone = decode(model, conditions[rows], DiffusionDecoder(3), sampling, uniform[rows])
        assert torch.equal(alone[0], together[row])
    many = make_conditions(1, False)[torch.zeros(3000, dtype=torch.int64)]
    plan = DiffusionDecoder(3).plan(model, None, DiffusionDecoder(3).key(model, many, sampling))
    plan.load(many, sampling, uniform_table(1, 0, 3000, 16))
    ranks = plan.ranks_BN[:, 8:]
    assert (ranks[:, 0] == 0).all() and torch.equal(ranks.sort(dim=1).values, torch.arange(8).expand(3000, 8))
    counts = torch.stack([torch.bincount(ranks[:, cell], minlength=8)[1:] for cell in range(1, 8)])
    assert (counts - 3000 / 7).abs().max() < 5 * (3000 / 7) ** 0.5  # each place as often, to five deviations


def test_forwards_and_floors_by_hand():
    model = diffusion_model(3, 4, 5)
    config, decoder, block = model.config, DiffusionDecoder(2), model.config.backbone
    assert decoder.num_forwards(config, Grid(3, 4)) == 1 + 2 + 2 + 2
    assert DiffusionDecoder(9).num_forwards(config, Grid(3, 4)) == 1 + 4 + 5 + 2 == 12
    costs = decoder.costs(config, Workload(Grid(3, 4), rows=6, prefix_length=1, weight_bytes=4))
    blocks, head = 2 * block.block_weights, block.head_weights
    fed_and_predicted = [(1, 1), (5, 4), (5, 4), (10, 5), (5, 4), (7, 2), (2, 1)]
    flops = [2 * 6 * (blocks * fed + head * targets) for fed, targets in fed_and_predicted]
    assert costs == [ForwardCost(4 * (blocks + head), each) for each in flops]
    heads = []
    with model.backbone.head.register_forward_hook(lambda module, given, logits: heads.append(logits.shape[1])):
        decode(model, make_conditions(1, False), decoder, Sampling(), uniform_table(0, 0, 1, 12))
    assert heads == [targets for _, targets in fed_and_predicted]


@torch.inference_mode()
def test_logits_of_given_tokens_are_those_that_drew_them():
    """Greedy tokens fed again have their own logits: each is the best where it was drawn."""
    model, conditions, grid = diffusion_model(3, 4, 5), make_conditions(3, False), Grid(3, 4)
    decoder, greedy = DiffusionDecoder(2), Sampling(temperature=0.0)
    tokens = decode(model, conditions, decoder, greedy, torch.zeros(3, 12))
    logits = decoder.logits(model, None, tokens, conditions, grid)
    assert logits.shape == (3, 3, 4, 32) and torch.equal(logits.argmax(dim=-1), tokens)
    engine = Engine(model)
    forced = engine.teacher_forced(decoder, conditions, greedy, tokens)
    assert forced is not None and forced.shape == (3, 12, 32)
    plan = decoder.plan(model, None, decoder.key(model, conditions, greedy))
    plan.load(conditions, greedy, torch.zeros(3, 12))
    cells = plan.cells_as_drawn()
    assert torch.equal(forced.argmax(dim=-1), tokens.flatten(1).take_along_dim(cells, dim=1))
    assert cells[:, 0].tolist() == [0, 0, 0] and not torch.equal(cells[0], torch.arange(12))


@pytest.mark.parametrize("level", ("packed", "compile"))
def test_every_level_draws_the_same_tokens(level, monkeypatch):
    """Here the parts that compiling stands in for run as they are, which takes no time."""
    monkeypatch.setattr(compiled, "_compile", lambda function: function)
    model, conditions = diffusion_model(3, 4, 4), make_conditions(2, False)
    sampling, uniform = Sampling(cfg_scale=1.5), uniform_table(0, 0, 2, 12)
    found = [
        Engine(model, optimisation=each).decode(DiffusionDecoder(2), conditions, sampling, uniform)
        for each in ("eager", level)
    ]
    assert torch.equal(*found)


def test_which_models_have_it():
    config = diffusion_model(3, 4, 4).config
    assert choose_decoder(config).name == "block-diffusion:4"
    assert [decoder.name for decoder in decoders_of(config)] == ["block-diffusion:4", "raster"]
    assert get_decoder("block-diffusion").name == "block-diffusion:4"
    assert choose_decoder(config, "block-diffusion:2").num_forwards(config, Grid(3, 4)) == 7
    base = build_model(random_config(branch=False, tokenizer=False)).config
    with pytest.raises(FlasharError, match="adapt a raster base with `flashar adapt --method block-diffusion`"):
        choose_decoder(base, "block-diffusion")
