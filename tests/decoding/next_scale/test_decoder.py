"""Decoders of next-scale models through an engine, at every level that a CPU has."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from flashar_cli.config import Pruning, Sampling
from flashar_cli.decoding.decoders import DECODERS
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.next_scale.decoder import FASTVAR
from flashar_cli.tokenizers import build_tokenizer
from tests.decoding.next_scale.plain import CASES, conditions_of, model_of, uniform_of

PRUNING = Pruning(ratios=((2, 0.3), (3, 0.5)), first_layer=1, num_scales=4)


@pytest.fixture
def traced_only(monkeypatch):
    """``torch.compile`` without its code generation."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


def test_parts_are_compiled_once_for_all_blocks(traced_only):
    """Each of three parts for one token and for several, and self-attention for tokens of its own in each row; none
    falls into pieces, and FastVAR's tokens are those of eager decoding.
    """
    config, grid = CASES["tall"]
    model, _ = model_of(config.with_fastvar(PRUNING))
    tokenizer, conditions = build_tokenizer(config.tokenizer).eval(), conditions_of(config, 2)
    uniform, sampling, lines = uniform_of(model, grid, 2), Sampling(cfg_scale=2.0), []
    plain, compiled = (
        Engine(model, tokenizer, level, lines.append).decode(FASTVAR, conditions, sampling, uniform, grid=grid)
        for level in ("eager", "compile")
    )
    counters = torch._dynamo.utils.counters
    assert torch.equal(plain, compiled) and lines == []
    assert counters["stats"]["unique_graphs"] == 3 * 2 + 1 and not counters["graph_break"]


@pytest.mark.parametrize("case", CASES)
def test_packed_weights_sample_the_same_tokens(case):
    config, grid = CASES[case]
    model, _ = model_of(config.with_fastvar(PRUNING))
    tokenizer, conditions = build_tokenizer(config.tokenizer).eval(), conditions_of(config, 2)
    uniform, sampling = uniform_of(model, grid, 2), Sampling(cfg_scale=2.0)
    plain, packed = (
        Engine(model, tokenizer, level).decode(FASTVAR, conditions, sampling, uniform, grid=grid)
        for level in ("eager", "packed")
    )
    assert torch.equal(plain, packed)


def test_flex_is_refused_in_one_line():
    config, _ = CASES["var"]
    model, lines = model_of(config)[0], []
    assert Engine(model, None, "flex", lines.append).optimisation == "eager"
    assert lines == ["FlexAttention stands in for the attention of a few tokens at a time; whole maps keep SDPA's"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ("scale", "truncate", "fastvar"))
def test_shapes_that_are_told_are_those_that_are_made(case, name):
    config, grid = CASES[case]
    config = config.with_fastvar(PRUNING)
    model, _ = model_of(config)
    engine, decoder = Engine(model, build_tokenizer(config.tokenizer).eval()), DECODERS[name]
    steps = []
    tokens = engine.decode(
        decoder, conditions_of(config, 2), Sampling(), uniform_of(model, grid, 2), steps.append, grid
    )
    assert tokens.shape == (2, *decoder.token_shape(config, grid))
    assert steps == list(range(decoder.num_forwards(config, grid)))
    maps = decoder.token_maps(config, grid)
    assert sum(height * width for height, width, *_ in maps.values()) == tokens.shape[1]
    assert engine.pixels(tokens, grid).shape == (
        2,
        3,
        grid.height * config.pixels_per_token,
        grid.width * config.pixels_per_token,
    )
