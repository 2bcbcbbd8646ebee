"""Training-free orders of a raster model: against a plain loop without a cache, and where they are raster decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashar_cli.config import Sampling
from flashar_cli.decoding.decoders import choose_decoder, get_decoder
from flashar_cli.decoding.static import NAIVE, RASTER, zipar
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.rope import rope_table_2d
from flashar_cli.nn.sampling import guide, uniform_table
from tests.decoding.plain import decode
from tests.decoding.test_decoder import make_conditions, make_model
from tests.tiny_models import build_model, emu_like_config


@torch.no_grad()
def zipped_logits(model: FlasharModel, tokens_BHW: Tensor, labels, window: int, drop: bool) -> tuple[Tensor, int]:
    """Logits [B, H, W, V] of the released loop, and its forwards. Tokens are fed in rows that run at the same time;
    what is fed stays where it was put until another token is put there; a row that begins too early gets a token of the
    row above the one above it in the place of the last token before.
    """
    batch, height, width = tokens_BHW.shape
    drop_B = torch.full((batch,), drop)
    x, prefix = [model.prefix(labels, drop_B)], model.prefix.length(labels)
    seen = [list(range(place + 1)) for place in range(prefix)]  # of each fed token those that it attends to
    places, stored = list(range(prefix)), {place: place for place in range(prefix)}
    predicted_from = {0: prefix - 1}  # by cell
    held, forwards, new = [1] + [0] * (height - 1), 1, [(0, None)]
    while sum(held) < height * width or new:
        feeding = list(new)
        for row in range(1, height):
            above_holds = held[row - 1] >= (width if row == 1 else window)
            if held[row] == 0 and above_holds and held[row - 1] < width:
                feeding.append((row * width - 1, (row - 2) * width + held[row - 2] - 1))
        index = len(places)
        for offset, (cell, copied) in enumerate(feeding):
            row, col = divmod(cell if copied is None else copied, width)
            x.append(model.backbone.embedding(tokens_BHW[:, row, col])[:, None])
            places.append(prefix + cell)
            stored[prefix + cell] = index + offset
        for cell, _ in feeding:
            seen.append([at for place, at in stored.items() if place <= prefix + cell])
        new = []
        for offset, (cell, _) in enumerate(feeding):
            if cell + 1 < height * width and cell + 1 not in predicted_from:
                predicted_from[cell + 1] = index + offset
                held[(cell + 1) // width] += 1
                new.append((cell + 1, None))
        forwards += bool(new)
    mask = torch.zeros(len(places), len(places), dtype=torch.bool)
    for query, keys in enumerate(seen):
        mask[query, keys] = True
    config = model.config.backbone
    rope = rope_table_2d(model.config.order_grid.raster(), prefix, config.head_dim, config.rope_base, x[0].device)
    hidden = model.hidden_states(torch.cat(x, dim=1), rope[places], mask, False).horizontal
    logits = model.backbone.head(hidden[:, [predicted_from[cell] for cell in range(height * width)]])
    return logits.unflatten(1, (height, width)), forwards


@pytest.mark.parametrize("guided", (False, True))
@pytest.mark.parametrize("window", (1, 2, 3, 4, 5, 9))
@pytest.mark.parametrize("shape", ((4, 5), (5, 3), (2, 4), (1, 4), (4, 1)))
def test_zipar_is_the_released_loop(shape, window, guided):
    model, conditions = make_model(*shape, "hidden"), make_conditions(3, False)
    decoder, grid = zipar(window), model.config.order_grid
    order, sampling = decoder.order(model.config, grid), Sampling(cfg_scale=1.7) if guided else Sampling()
    seen = []
    uniform = uniform_table(0, 0, 3, grid.num_cells)
    tokens = decode(model, conditions, decoder, sampling, uniform, lambda _, logits: seen.append(logits))
    found = order.to_raster(torch.cat(seen, dim=1), trailing=1)
    parts = [zipped_logits(model, tokens, conditions, window, drop) for drop in (False, True)]
    expected = guide(parts[0][0], parts[1][0], 1.7) if guided else parts[0][0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert decoder.num_forwards(model.config, grid) == parts[0][1] == order.num_steps
    if not guided:
        with torch.inference_mode():
            fed = decoder.logits(model, None, tokens, conditions, grid)
        torch.testing.assert_close(fed, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("side", "window", "forwards"),
    ((32, 4, 184), (32, 8, 304), (16, 4, 88), (16, 8, 144), (24, 4, 136), (24, 8, 224), (16, 16, 256), (16, 1, 46)),
)
def test_forwards_are_those_of_the_released_loop(side, window, forwards):
    assert Grid(side, side).zipped(window).num_steps == forwards


def test_a_window_as_wide_as_a_row_is_raster_decoding():
    model, conditions = make_model(4, 5, "hidden"), make_conditions(3, False)
    uniform = uniform_table(0, 0, 3, 20)
    for window in (5, 8):
        zipped = decode(model, conditions, zipar(window), Sampling(cfg_scale=2.0), uniform)
        assert torch.equal(zipped, decode(model, conditions, RASTER, Sampling(cfg_scale=2.0), uniform))


@pytest.mark.parametrize("guided", (False, True))
def test_a_caption_of_full_length_is_the_released_loop(guided):
    """Its keys have a mask, which hides none; what fillers and later rows hide is hidden all the same."""
    model, conditions = make_model(4, 5, "hidden", captions=True), make_conditions(1, True)
    sampling = Sampling(cfg_scale=1.7) if guided else Sampling()
    order, seen = zipar(2).order(model.config, model.config.order_grid), []
    tokens = decode(
        model, conditions, zipar(2), sampling, uniform_table(0, 0, 1, 20), lambda _, logits: seen.append(logits)
    )
    parts = [zipped_logits(model, tokens, conditions, 2, drop)[0] for drop in (False, True)]
    expected = guide(*parts, 1.7) if guided else parts[0]
    found = order.to_raster(torch.cat(seen, dim=1), trailing=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_captions_and_fillers_together():
    """Padded captions are masked as well; a batch is what each image is alone."""
    model, conditions = make_model(4, 5, "hidden", captions=True), make_conditions(3, True)
    uniform = uniform_table(0, 0, 3, 20)
    together = decode(model, conditions, zipar(2), Sampling(cfg_scale=2.0), uniform)
    for row in range(3):
        rows = torch.tensor([row])
        alone = decode(model, conditions[rows], zipar(2), Sampling(cfg_scale=2.0), uniform[rows])
        assert torch.equal(alone[0], together[row])


def test_naive_predicts_from_the_left_and_in_the_first_column_from_above():
    model, conditions = make_model(3, 4, "hidden"), make_conditions(2, False)
    grid = model.config.order_grid
    order, diagonal = NAIVE.order(model.config, grid), grid.diagonal()
    tokens = torch.randint(0, 32, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    found = NAIVE.logits(model, None, tokens, conditions, grid)
    with torch.no_grad():
        hidden = model(diagonal.from_raster(tokens), conditions, order, read=lambda hidden, targets: hidden.horizontal)
        expected = model.backbone.head(hidden)
    for row in range(3):
        for col in range(4):
            source = 0 if row == col == 0 else 1 + diagonal.positions[4 * row + col - 1 if col else 4 * (row - 1)]
            torch.testing.assert_close(found[:, row, col], expected[:, source])
    assert NAIVE.num_forwards(model.config, grid) == 6


def test_names_with_and_without_a_window():
    config = make_model(3, 4, "hidden").config
    assert choose_decoder(config, "zipar").name == "zipar:8" and choose_decoder(config, "zipar:3").name == "zipar:3"
    for name in ("zipar:0", "zipar:", "zipar:x", "zipar:99999", "raster:3", "jacoby"):
        with pytest.raises(FlasharError, match=f"--decoder is {name}; expected one of"):
            get_decoder(name)


def test_models_with_line_ends_have_neither():
    config = build_model(emu_like_config()).config
    for name in ("naive", "zipar"):
        with pytest.raises(FlasharError, match="ends each row with a token of its own"):
            choose_decoder(config, name)
