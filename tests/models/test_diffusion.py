"""What a cell is predicted from in block diffusion: against one block at a time, as sampling computes it."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import CaptionPrefix, DiffusionConfig, RasterConfig
from flashar_cli.grid import Grid
from flashar_cli.models.diffusion import diffusion_mask
from flashar_cli.models.flashar import FlasharModel
from tests.decoding.test_decoder import make_conditions, scaled
from tests.tiny_models import build_model, emu_like_config, random_config


def diffusion_model(height: int, width: int, block: int, captions: bool = False) -> FlasharModel:
    """Random weights that make every token matter."""
    config = random_config(height, width, branch=False, tokenizer=False).model_dump()
    config["diffusion"] = {"block": block}
    if captions:
        config["prefix"] = CaptionPrefix(feature_dim=6, length=7).model_dump()
    model = scaled(build_model(RasterConfig.model_validate(config)))
    assert model.diffusion is not None
    with torch.no_grad():
        model.diffusion.unknown.normal_(std=0.3, generator=torch.Generator().manual_seed(8))
    return model


def drawn(shape: tuple[int, ...], seed: int = 3) -> torch.Tensor:
    return torch.randint(32, shape, generator=torch.Generator().manual_seed(seed))


def block_by_block(model: FlasharModel, tokens: torch.Tensor, conditions, unknown: torch.Tensor) -> torch.Tensor:
    """Logits [B, N, V] from a sequence for each block: what is before it, causal, and the block, which sees all."""
    grid, raster = model.config.order_grid, model.config.order_grid.raster()
    drop = torch.zeros(len(tokens), dtype=torch.bool)
    prefix, valid = model.prefix(conditions, drop), model.prefix.valid(conditions, drop)
    embedded, found = model.backbone.embedding(tokens), []
    length, block = prefix.shape[1], model.diffusion.config.block
    rope = model.rope(raster, length, valid)
    for first in range(0, grid.num_cells, block):
        last = min(first + block, grid.num_cells)
        noisy = torch.where(unknown[:, first:last, None], model.diffusion.unknown, embedded[:, first:last])
        x = torch.cat([prefix, embedded[:, :first], noisy], dim=1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mask[length + first :] = True
        if valid is not None:
            keys = torch.cat([valid, torch.ones(len(x), x.shape[1] - length, dtype=torch.bool)], dim=1)
            mask = (mask & keys[:, None, None]) | torch.eye(x.shape[1], dtype=torch.bool)
        hidden = model.hidden_states(x, rope[..., : x.shape[1], :, :], mask, False).horizontal
        found.append(model.backbone.head(hidden[:, length + first - 1 : length + last - 1]).float())
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize("block", (1, 3, 4, 5, 12, 40))
@torch.no_grad()
def test_all_blocks_at_once_are_one_block_after_the_other(block, captions):
    model, conditions = diffusion_model(3, 4, block, captions), make_conditions(3, captions)
    tokens = drawn((3, 12))
    unknown = torch.rand(3, 12, generator=torch.Generator().manual_seed(5)) < 0.5
    found = model(tokens, conditions, model.config.order_grid.raster(), unknown_BN=unknown).logits
    torch.testing.assert_close(found, block_by_block(model, tokens, conditions, unknown), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_unknown_token_tells_nothing():
    """Every cell is unknown in turn and gets another token: only later blocks, which see it as it is, notice."""
    model, conditions = diffusion_model(3, 4, 4), make_conditions(1, False)
    tokens, raster = drawn((1, 12)), model.config.order_grid.raster()
    for cell in range(12):
        unknown = torch.zeros(1, 12, dtype=torch.bool)
        unknown[0, cell] = True
        other = tokens.clone()
        other[0, cell] = (other[0, cell] + 1) % 32
        before, after, known = (
            model(each, conditions, raster, unknown_BN=mask).logits
            for each, mask in ((tokens, unknown), (other, unknown), (other, ~unknown & False))
        )
        end = (cell // 4 + 1) * 4
        assert torch.equal(before[:, :end], after[:, :end])
        if end < 12:
            assert ((before - after).abs().amax(dim=-1)[:, end:] > 1e-6).all()
        # A known one is seen by all of its block but the first cell, which is predicted from what is before.
        moved = ((before - known).abs().amax(dim=-1) > 1e-6)[0, end - 4 : end]
        assert moved.tolist() == [False, True, True, True]


@torch.no_grad()
def test_a_blank_token_tells_nothing_either():
    model, conditions = diffusion_model(3, 4, 4), make_conditions(1, False)
    tokens, raster = drawn((1, 12)), model.config.order_grid.raster()
    blank, known = torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.bool)
    logits = [
        model(each, conditions, raster, blank_BN=blank, unknown_BN=known).logits for each in (tokens, tokens.flip(1))
    ]
    assert torch.equal(*logits)


@torch.no_grad()
def test_the_first_cell_of_a_block_is_predicted_as_by_the_base():
    model, conditions = diffusion_model(4, 4, 4), make_conditions(2, False)
    tokens, raster = drawn((2, 16)), model.config.order_grid.raster()
    base = model(tokens, conditions, raster).logits
    found = model(tokens, conditions, raster, unknown_BN=torch.ones(2, 16, dtype=torch.bool)).logits
    torch.testing.assert_close(found[:, ::4], base[:, ::4], atol=1e-5, rtol=1e-5)
    assert ((found - base).abs().amax(dim=-1)[:, torch.arange(16) % 4 > 0] > 1e-3).all()


def test_the_mask_of_two_blocks_by_hand():
    """A prefix token, cells 0 and 1 as they are, then cells 0 to 3 with unknown ones."""
    expected = """
        x . . . . . .
        x x . . . . .
        x x x . . . .
        x . . x x . .
        x . . x x . .
        x x x . . x x
        x x x . . x x"""
    rows = [[mark == "x" for mark in line.split()] for line in expected.split("\n") if line]
    mask = diffusion_mask(Grid(2, 2), DiffusionConfig(block=2), 1, torch.device("cpu"))
    assert mask.tolist() == rows


def test_an_unknown_token_begins_as_the_mean_of_all():
    model = build_model(random_config(branch=False, tokenizer=False)).bfloat16()
    model.add_diffusion(DiffusionConfig(block=4), torch.float32)
    assert model.diffusion is not None and model.diffusion.unknown.dtype == torch.float32
    torch.testing.assert_close(
        model.diffusion.unknown.detach(),
        model.backbone.embedding.weight.detach().mean(dim=0).float(),
        atol=1e-3,
        rtol=1e-2,
    )
    assert model.config.diffusion == DiffusionConfig(block=4)
    assert model.config.num_weights == sum(parameter.numel() for parameter in model.parameters())
    assert model.config.structure == "blocks of 4"


def test_models_that_have_no_blocks():
    with_branch = random_config(tokenizer=False).model_dump() | {"diffusion": {"block": 4}}
    with pytest.raises(ValueError, match="a branch or diffusion, not both"):
        RasterConfig.model_validate(with_branch)
    with_ends = emu_like_config().model_dump() | {"branch": None, "diffusion": {"block": 4}}
    with pytest.raises(ValueError, match="token that ends each row"):
        RasterConfig.model_validate(with_ends)
