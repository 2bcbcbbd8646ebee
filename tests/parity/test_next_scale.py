"""Published outputs of next-scale models: VAR, Infinity, and FastVAR on Infinity."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import Pruning, Sampling
from flashar_cli.decoding.next_scale import fastvar
from flashar_cli.decoding.next_scale.maps import TokenMaps
from flashar_cli.grid import Grid
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.next_scale import patchify
from tests.decoding.next_scale.plain import decode_with, num_choices, plan_of
from tests.parity.fixtures import Fixture, read_fixture
from tests.parity.next_scale import captions, has_bits, model_of, quantizer_of
from tests.tokenizers.next_scale.published import INFINITY, VAR

# Of hidden states up to 270. In float64 ours are within 1e-4 of the published ones, in float32 within 1.7e-4 of those.
HIDDEN = 3e-4


@pytest.fixture(scope="module")
def fixture(request) -> Fixture:
    return read_fixture(request.param)


@pytest.fixture(scope="module")
def model(fixture):
    return model_of(fixture)


def of(*names: str):
    """A test of these fixtures."""
    return pytest.mark.parametrize("fixture", names, indirect=True)


def teacher_conditions(fixture: Fixture) -> Conditions:
    if has_bits(fixture):
        return captions(fixture, "square_", fixture.meta["runs"]["square"]["lens"])
    return Conditions(labels=fixture.tensors["teacher_labels"])


def teacher_tokens(fixture: Fixture, patch: int) -> torch.Tensor:
    """Those of Infinity are published as positions of the latent."""
    if not has_bits(fixture):
        return fixture.tensors["teacher_tokens"]
    names = [name for name in sorted(fixture.tensors) if name.startswith("teacher_bits_")]
    return torch.cat([patchify(fixture.tensors[name][:, 0], patch) for name in names], dim=1)


@of(*VAR, *INFINITY)
def test_teacher_forced_logits(fixture, model):
    latents, grid = fixture.tensors["teacher_input"], model.config.order_grid
    logits = model(latents, teacher_conditions(fixture), grid)
    torch.testing.assert_close(logits, fixture.tensors["teacher_logits"], atol=1e-4, rtol=0)


@of(*VAR, *INFINITY)
def test_latents_and_what_is_read_of_them(fixture, model):
    maps = TokenMaps(model.config, quantizer_of(fixture), model.config.scales(model.config.order_grid))
    tokens = teacher_tokens(fixture, model.config.patch)
    torch.testing.assert_close(maps.inputs(tokens), fixture.tensors["teacher_input"], atol=1e-5, rtol=0)
    check_latent(maps, tokens, fixture.tensors["teacher_summed_codes" if has_bits(fixture) else "teacher_f_hat"])


def check_latent(maps: TokenMaps, tokens: torch.Tensor, published: torch.Tensor) -> None:
    latent = maps.quantizer.latent(maps.split(tokens), maps.positions)
    torch.testing.assert_close(latent, published, atol=1e-5, rtol=0)


def decode(fixture, model, conditions, grid, cfg_scales, pruning=None):
    """Greedily: the plan after decoding, the tokens of each scale, and its guided logits."""
    sampling = Sampling(cfg_schedule=cfg_scales, temperature=0)
    plan, logits = plan_of((model, quantizer_of(fixture)), conditions, grid, sampling, pruning), []
    uniform = torch.zeros(len(conditions), num_choices(model, grid))
    on_step = lambda _, each: logits.append(each.clone())  # noqa: E731
    tokens = decode_with(plan, conditions, sampling, uniform, on_step)
    return plan, tokens.split([last - first for first, last in plan.bounds], dim=1), logits


@of(*VAR)
def test_greedy_decodes(fixture, model):
    tensors, num_scales = fixture.tensors, len(fixture.meta["config"]["patch_nums"])
    for cfg in fixture.meta["cfgs"]:
        name, scales = f"greedy_cfg{cfg:g}", [1 + cfg * scale / (num_scales - 1) for scale in range(num_scales)]
        conditions = Conditions(labels=tensors["labels"])
        plan, tokens, logits = decode(fixture, model, conditions, model.config.order_grid, scales)
        assert plan.num_rows == (4 if cfg else 2)
        assert torch.equal(torch.cat(tokens, dim=1), tensors[name])
        for scale in fixture.meta["guided_logits_scales"]:
            published = tensors.get(f"{name}_guided_logits_{scale}")
            if published is not None:
                torch.testing.assert_close(logits[scale], published, atol=1e-4, rtol=0)
        check_latent(plan.maps, plan.tokens(), tensors[f"{name}_f_hat"])


def check_bits(tensors, prefix, tokens, logits, temperatures):
    """Bits exactly; published logits are divided by the temperature before guidance."""
    for scale, (found, each) in enumerate(zip(tokens, logits, strict=True)):
        assert torch.equal(found, tensors.get(f"{prefix}bits_{scale}", tensors.get(f"bits_{scale}")))
        published = tensors.get(f"{prefix}logits_{scale}")
        if published is not None:
            tempered = each.reshape(published.shape) / temperatures[scale]
            torch.testing.assert_close(tempered, published, atol=1e-3, rtol=0)


@of(*INFINITY)
def test_greedy_bits(fixture, model):
    for name, run in fixture.meta["runs"].items():
        conditions = captions(fixture, f"{name}_", run["lens"])
        grid = Grid(*run["schedule"][-1][1:])
        plan, tokens, logits = decode(fixture, model, conditions, grid, run["cfg_list"])
        check_bits(fixture.tensors, f"{name}_", tokens, logits, run["tau_list"])
        check_latent(plan.maps, plan.tokens(), fixture.tensors[f"{name}_summed_codes"])


# What FastVAR's released code does on Infinity, by scale instead of width.
PUBLISHED = Pruning(ratios=((9, 0.4), (10, 0.5)), first_layer=3, cached_scale=8, num_scales=11)
PARTS = ("sa", "ca", "ffn")


@pytest.fixture(scope="module")
def pruned() -> Fixture:
    return read_fixture("fastvar_infinity_small")


def record(monkeypatch) -> tuple[list[torch.Tensor], dict[tuple[int, int], torch.Tensor]]:
    """The kept tokens of every selection, and by width and layer the residual streams after blocks."""
    kept, streams = [], {}
    select, run = fastvar.select, fastvar.PrunedBlocks.run

    def recorded_select(x, num_kept, order):
        kept.append(select(x, num_kept, order))
        return kept[-1]

    def recorded_run(blocks, layer, scale, block, x, given):
        streams[blocks.scales[scale].width, layer] = run(blocks, layer, scale, block, x, given)
        return streams[blocks.scales[scale].width, layer]

    monkeypatch.setattr(fastvar, "select", recorded_select)
    monkeypatch.setattr(fastvar.PrunedBlocks, "run", recorded_run)
    return kept, streams


def test_pruned_bits(pruned, monkeypatch):
    model, tensors, meta = model_of(pruned), pruned.tensors, pruned.meta
    kept, streams = record(monkeypatch)
    conditions, grid = captions(pruned, "", meta["lens"]), Grid(64, 64)
    plan, tokens, logits = decode(pruned, model, conditions, grid, meta["cfg_list"], PUBLISHED)
    assert len(tokens) == 11 and [cache.keys.shape[2] for cache in plan.caches] == [4121] * 3 + [2912] * 3
    check_bits(tensors, "", tokens, logits, meta["tau_list"])
    check_latent(plan.maps, plan.tokens(), tensors["summed_codes"])

    names = [f"kept_w{width}_l{layer}_{part}" for width in (32, 40) for layer in (3, 4, 5) for part in PARTS]
    for name, found in zip(names, kept, strict=True):
        assert torch.equal(found.sort(dim=1).values, tensors[name].long().sort(dim=1).values), name
    for width in (24, 32, 40):
        probe = tensors[f"probe_w{width}"].long()
        for layer in range(6):
            found = streams[width, layer][:, probe]
            torch.testing.assert_close(found, tensors[f"x_w{width}_l{layer}"], atol=HIDDEN, rtol=0)
    probe = tensors["probe_w24"].long()
    for layer, outputs in enumerate(plan.blocks.outputs, start=3):
        for part, output in zip(PARTS, outputs, strict=True):
            torch.testing.assert_close(output[:, probe], tensors[f"cache_w24_l{layer}_{part}"], atol=HIDDEN, rtol=0)


def test_bits_of_the_same_scales_unpruned(pruned, monkeypatch):
    model, tensors, meta = model_of(pruned), pruned.tensors, pruned.meta
    kept, streams = record(monkeypatch)
    conditions, grid = captions(pruned, "", meta["lens"]), Grid(64, 64)
    plan, tokens, logits = decode(pruned, model, conditions, grid, meta["cfg_list"], Pruning(num_scales=11))
    check_bits(tensors, "noprune_", tokens, logits, meta["tau_list"])
    check_latent(plan.maps, plan.tokens(), tensors["noprune_summed_codes"])
    assert not kept
    for width in (32, 40):
        probe = tensors[f"probe_w{width}"].long()
        for layer in range(6):
            found = streams[width, layer][:, probe]
            torch.testing.assert_close(found, tensors[f"noprune_x_w{width}_l{layer}"], atol=HIDDEN, rtol=0)
