"""Cached decoding against teacher forcing, and the degenerate grids whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from flashar_cli.config import CaptionPrefix, RasterConfig, Sampling, TextPrefix, default_gate_dim
from flashar_cli.decoding.decoders import DECODERS, choose_decoder, decoders_of
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.images import Request, generate_tokens
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.static import FLASHAR
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid, Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.models.prefix.text import left_padded, unconditional
from flashar_cli.nn.rope import rope_table_1d
from flashar_cli.nn.sampling import guide, uniform_table
from tests.decoding.plain import decode
from tests.tiny_models import build_model, emu_like_config, random_config

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
    config = random_config(height, width, tokenizer=False).model_dump()
    config["branch"] = {"layer": layer, "depth": depth, "gate": gate, "gate_dim": default_gate_dim(gate, 32, 32)}
    if captions:
        config["prefix"] = CaptionPrefix(feature_dim=6, length=7).model_dump()
    return scaled(build_model(RasterConfig.model_validate(config)))


def scaled(model: FlasharModel) -> FlasharModel:
    """Matrices of N(0, 0.3^2)."""
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


def teacher_forced(model: FlasharModel, tokens: torch.Tensor, conditions: Conditions, order: Order, scale: float):
    """Logits [B, N, V] in the order, with guidance."""
    sequence = order.from_raster(tokens)
    with torch.no_grad():
        if scale == 1:
            return model(sequence, conditions, order).logits
        drop = torch.ones(len(tokens), dtype=torch.bool)
        pair = [model(sequence, conditions, order, row, paired=True).logits for row in (~drop, drop)]
        return guide(*pair, scale)


def assert_cached_is_teacher_forced(model: FlasharModel, conditions: Conditions, scale: float, atol: float) -> None:
    grid, sampling = model.config.order_grid, Sampling(cfg_scale=scale)
    uniform = uniform_table(0, 0, len(conditions), grid.num_cells)
    for order in (grid.diagonal(), grid.raster()):
        seen = []
        tokens = decode(model, conditions, order, sampling, uniform, lambda _, logits, seen=seen: seen.append(logits))
        assert tokens.shape == (len(conditions), grid.height, grid.width)
        expected = teacher_forced(model, tokens, conditions, order, scale)
        torch.testing.assert_close(torch.cat(seen, dim=1), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize(("shape", "gate", "scale", "batch"), CASES)
def test_cached_decoding_equals_teacher_forcing(shape, gate, scale, batch, captions):
    assert_cached_is_teacher_forced(make_model(*shape, gate, captions), make_conditions(batch, captions), scale, 1e-4)


@pytest.mark.parametrize(("layer", "depth"), ((0, 1), (2, 1), (1, 3), (0, 2)))
def test_branch_anywhere_and_of_any_depth(layer, depth):
    model = make_model(3, 5, "hidden", layer=layer, depth=depth)
    assert_cached_is_teacher_forced(model, make_conditions(3, False), 1.0, 1e-4)


def test_one_row_decodes_as_raster_once_the_corner_gate_is_one():
    model = make_model(1, 6, "scalar")
    with torch.no_grad():
        model.branch.gate.logit.fill_(100.0)
    uniform, conditions, grid = torch.rand(3, 6), make_conditions(3, False), model.config.order_grid
    flashar = decode(model, conditions, grid.diagonal(), Sampling(), uniform)
    assert torch.equal(flashar, decode(model, conditions, grid.raster(), Sampling(), uniform))


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
    tokens = torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = model(tokens, make_conditions(2, False), order)
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
def test_each_cell_is_sampled_with_its_own_number(decoder):
    """By a walk over the probabilities: the first token at which their sum exceeds the cell's number."""
    model, seen = make_model(3, 5, "hidden"), []
    order, uniform = DECODERS[decoder].order(model.config, model.config.order_grid), uniform_table(3, 0, 2, 15)
    tokens = decode(model, make_conditions(2, False), order, Sampling(), uniform, lambda _, logits: seen.append(logits))
    sums = order.to_raster(torch.cat(seen, dim=1), trailing=1).double().softmax(-1).cumsum(-1)
    near = 1e-5  # where a sum falls on the number itself, rounding decides
    numbers = uniform.reshape(2, 3, 5, 1)
    drawn = sums.gather(-1, tokens[..., None])
    before = torch.where(tokens[..., None] > 0, sums.gather(-1, (tokens[..., None] - 1).clamp_min(0)), 0.0)
    assert bool((before - near <= numbers).all()) and bool((numbers < drawn + near).all())


@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_images_do_not_depend_on_their_batch(decoder):
    model = make_model(4, 4, "hidden")
    request = Request(DECODERS[decoder], make_conditions(3, False), 8, Sampling(cfg_scale=1.5), Grid(4, 4), seed=5)
    whole = [torch.cat(list(generate_tokens(Engine(model), replace(request, batch_size=size)))) for size in (1, 3, 8)]
    assert torch.equal(whole[0], whole[1]) and torch.equal(whole[1], whole[2])


def test_guidance_interval_counts_cells():
    model = make_model(4, 4, "mean")
    conditions, order = make_conditions(1, False), model.config.order_grid.raster()
    uniform = torch.rand(1, 16)
    logits: dict[str, list[torch.Tensor]] = {}
    for name, interval in (("all", (0.0, 1.0)), ("half", (0.0, 0.5))):
        seen = logits.setdefault(name, [])
        params = Sampling(cfg_scale=3.0, cfg_interval=interval, temperature=0)
        tokens = decode(model, conditions, order, params, uniform, lambda _, step, seen=seen: seen.append(step))
    cond = teacher_forced(model, tokens, conditions, order, 1.0)
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
    decode(model, make_conditions(1, False), model.config.order_grid.diagonal(), Sampling(), torch.rand(1, 24))
    assert calls == 4 + 6 - 1


def test_flashar_needs_a_branch():
    config = random_config(branch=False)
    with pytest.raises(FlasharError, match="this model has no vertical branch"):
        choose_decoder(config, "flashar")
    assert [decoder.name for decoder in decoders_of(config)] == ["raster"]
    assert choose_decoder(config).name == "raster" and choose_decoder(random_config()).name == "flashar"


def text_model(gate: str = "hidden") -> FlasharModel:
    """Prompts, 1-D positions, an MLP before the blocks and two after them."""
    config = random_config(3, 5, tokenizer=False).model_dump()
    config["backbone"] |= {"rope": "1d", "embedding_dim": 6, "head_hidden_dim": 40}
    config["prefix"] = TextPrefix(vocab_size=20, begin=(1,), end=(6,), kept=(1, 6), max_length=9).model_dump()
    config["branch"] |= {"gate": gate, "gate_dim": default_gate_dim(gate, 64, 32)}
    return scaled(build_model(RasterConfig.model_validate(config)))


def prompts(lengths: tuple[int, ...]) -> Conditions:
    """Prompts of these lengths, padded to the longest; prompt k is the same in any batch."""
    rows = [[1, *((7 * k + j) % 13 + 7 for j in range(length - 2)), 6] for k, length in enumerate(lengths)]
    ids, mask = left_padded(rows, pad_id=0)
    config = TextPrefix(vocab_size=20, kept=(1, 6))
    return Conditions(ids=ids, mask=mask, uncond_ids=unconditional(ids, config), uncond_mask=mask)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("scale", (1.0, 5.0))
def test_cached_decoding_of_prompts_equals_teacher_forcing(gate, scale):
    assert_cached_is_teacher_forced(text_model(gate), prompts((7, 3, 9)), scale, 1e-4 * scale)


def test_an_unconditional_prompt_has_its_own_mask():
    """Cached decoding equals teacher forcing where it is shorter than the conditional one."""
    model, given, uniform = text_model(), prompts((7, 5)).tensors, uniform_table(0, 0, 2, 15)
    ids, mask = left_padded([[1, 6], [1, 9, 6]], pad_id=0, length=7)
    conditions = Conditions(**{**given, "uncond_ids": ids, "uncond_mask": mask})
    for order in (model.config.order_grid.diagonal(), model.config.order_grid.raster()):
        seen = []
        sampling = Sampling(cfg_scale=3.0)
        tokens = decode(model, conditions, order, sampling, uniform, lambda _, logits, seen=seen: seen.append(logits))
        expected = teacher_forced(model, tokens, conditions, order, 3.0)
        torch.testing.assert_close(torch.cat(seen, dim=1), expected, atol=5e-4, rtol=0)


def pairs(lengths: tuple[int, ...], uncond_lengths: tuple[int, ...]) -> Conditions:
    """Prompts and unconditional ones of these lengths, padded to the longest; pair k is the same in any batch."""
    longest = max(*lengths, *uncond_lengths)
    halves = []
    for salt, each in enumerate((lengths, uncond_lengths)):
        rows = [[(11 * k + 5 * j + salt) % 15 + 5 for j in range(length)] for k, length in enumerate(each)]
        halves.append(left_padded(rows, 0, longest))
    (ids, mask), (uncond_ids, uncond_mask) = halves
    return Conditions(ids=ids, mask=mask, uncond_ids=uncond_ids, uncond_mask=uncond_mask)


@pytest.mark.parametrize("shape", ((3, 5), (5, 3), (1, 4), (4, 1)))
@pytest.mark.parametrize("scale", (1.0, 3.0))
def test_cached_decoding_with_line_ends_and_a_branch_apart_equals_teacher_forcing(shape, scale):
    model = scaled(build_model(emu_like_config(*shape, depth=2)))
    conditions, uniform = pairs((7, 3, 9), (4, 6, 4)), uniform_table(0, 0, 3, shape[0] * shape[1])
    grid = model.config.order_grid
    for order in (grid.diagonal(), model.config.raster(grid)):
        seen = []
        tokens = decode(
            model,
            conditions,
            order,
            Sampling(cfg_scale=scale),
            uniform,
            lambda _, logits, seen=seen: seen.append(logits),
        )
        expected = teacher_forced(model, tokens, conditions, order, scale)
        torch.testing.assert_close(torch.cat(seen, dim=1), expected, atol=2e-4 * scale, rtol=0)


@pytest.mark.parametrize("guided", (False, True))
def test_a_prompt_longer_than_the_unconditional_one_places_its_image_after_itself(guided):
    """And one that is shorter after the unconditional one, where both decode together."""
    model = scaled(build_model(emu_like_config()))
    order = model.config.order_grid.diagonal()
    given = pairs((7, 3), (4, 6))
    rotations = DecodePlan(model, FLASHAR.key(model, given, Sampling(cfg_scale=3.0 if guided else 1.0)), order)
    rotations.load(given, Sampling(cfg_scale=3.0 if guided else 1.0), torch.zeros(2, 15))
    config = model.config.backbone
    for row, first in enumerate((7, 6, 7, 6) if guided else (7, 3)):
        expected = rope_table_1d(first + torch.tensor(order.cells), config.head_dim, config.rope_base)
        assert torch.equal(rotations.rope[row, 7:], expected)


@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_pairs_of_different_lengths_decode_as_each_alone(decoder):
    model, lengths, uncond = scaled(build_model(emu_like_config())), (7, 3, 9), (4, 6, 4)
    uniform, sampling = uniform_table(0, 0, 3, 15), Sampling(cfg_scale=3.0)

    def run(given: Conditions, uniform_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        tokens = decode(model, given, DECODERS[decoder], sampling, uniform_BN, lambda _, step: seen.append(step))
        return tokens, torch.cat(seen, dim=1)

    tokens, logits = run(pairs(lengths, uncond), uniform)
    for k in range(3):
        padded = pairs(lengths, uncond)[slice(k, k + 1)].tensors
        spare = 9 - max(lengths[k], uncond[k])
        alone = run(Conditions(**{name: part[:, spare:] for name, part in padded.items()}), uniform[k : k + 1])
        assert torch.equal(tokens[k : k + 1], alone[0])
        torch.testing.assert_close(logits[k : k + 1], alone[1], atol=5e-4, rtol=0)


@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_prompts_of_different_lengths_decode_as_each_alone(decoder):
    model, lengths = text_model(), (7, 3, 9)
    uniform, sampling = uniform_table(0, 0, 3, 15), Sampling(cfg_scale=5.0, temperature=0.0)

    def logits(conditions: Conditions, uniform_BN: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        decode(model, conditions, DECODERS[decoder], sampling, uniform_BN, lambda _, step: seen.append(step))
        return torch.cat(seen, dim=1)

    together = logits(prompts(lengths), uniform)
    for k, length in enumerate(lengths):
        padded = prompts(lengths)[slice(k, k + 1)].tensors
        alone = Conditions(**{name: part[:, max(lengths) - length :] for name, part in padded.items()})
        assert bool(alone.tensors["mask"].all())
        torch.testing.assert_close(together[k : k + 1], logits(alone, uniform[k : k + 1]), atol=5e-4, rtol=0)


def test_eager_attention_agrees():
    model = make_model(3, 5, "hidden", captions=True)
    conditions, order = make_conditions(3, True), model.config.order_grid.diagonal()
    tokens = torch.randint(0, 32, (3, 15))
    with torch.no_grad():
        fused = model(tokens, conditions, order).logits
        model.set_attention("eager")
        torch.testing.assert_close(model(tokens, conditions, order).logits, fused, atol=1e-4, rtol=0)
