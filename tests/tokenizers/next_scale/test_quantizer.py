"""Tokens of all scales to a latent and back, against published numbers."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.tokenizers.next_scale import patchify
from flashar_cli.tokenizers.next_scale.vector import residual_of
from tests.parity.fixtures import Fixture, read_fixture
from tests.tokenizers.next_scale.published import (
    INFINITY,
    VAR,
    assert_near,
    by_scale,
    infinity_bits,
    infinity_grids,
    infinity_patch,
    infinity_quantizer,
    on_latent,
    var_quantizer,
    var_scales,
)


@pytest.fixture(scope="module", params=VAR)
def var(request) -> Fixture:
    return read_fixture(request.param)


@pytest.fixture(scope="module", params=INFINITY)
def infinity(request) -> Fixture:
    return read_fixture(request.param)


def test_scales_share_the_published_convolutions(var: Fixture) -> None:
    published = var.meta["phi_of_scale"]
    num_residuals = var.meta["config"]["share_quant_resi"]
    assert [residual_of(index, len(published), num_residuals) for index in range(len(published))] == published


def test_latents_of_published_tokens(var: Fixture) -> None:
    quantizer, scales = var_quantizer(var), var_scales(var)
    for cfg in var.meta["cfgs"]:
        tokens = by_scale(var.tensors[f"greedy_cfg{cfg:g}"], scales)
        assert_near(quantizer.latent(tokens, scales), var.tensors[f"greedy_cfg{cfg:g}_f_hat"], 1e-5)
    tokens = by_scale(var.tensors["teacher_tokens"], scales)
    assert_near(quantizer.latent(tokens, scales), var.tensors["teacher_f_hat"], 1e-5)


def test_inputs_of_published_tokens(var: Fixture) -> None:
    quantizer, scales = var_quantizer(var), var_scales(var)
    tokens = by_scale(var.tensors["teacher_tokens"], scales)
    published = by_scale(var.tensors["teacher_input"], scales[1:])
    for index, scale in enumerate(scales[1:], start=1):
        found = quantizer.resized(quantizer.latent(tokens[:index], scales), scale)
        assert_near(found.permute(0, 2, 3, 1), published[index - 1], 1e-5)


def test_tokens_of_published_latents(var: Fixture) -> None:
    quantizer, scales = var_quantizer(var), var_scales(var)
    tokens = quantizer.search(var.tensors["latent"], scales)
    assert all(torch.equal(*pair) for pair in zip(tokens, by_scale(var.tensors["codes"], scales), strict=True))
    assert_near(quantizer.latent(tokens, scales), var.tensors["recon_f_hat"], 1e-5)


def test_codes_of_published_bits(infinity: Fixture) -> None:
    quantizer, patch = infinity_quantizer(infinity), infinity_patch(infinity)
    for run in infinity.meta["runs"]:
        scales = on_latent(infinity_grids(infinity, run), patch)
        latent = quantizer.latent(infinity_bits(infinity, run), scales)
        assert_near(latent, infinity.tensors[f"{run}_summed_codes"], 1e-5)


def test_inputs_of_published_bits(infinity: Fixture) -> None:
    quantizer, patch = infinity_quantizer(infinity), infinity_patch(infinity)
    grids = infinity_grids(infinity, "square")
    scales = on_latent(grids, patch)
    bits = [infinity.tensors[f"teacher_bits_{index}"].squeeze(1) for index in range(len(scales))]
    assert_near(quantizer.latent(bits, scales), infinity.tensors["teacher_summed_codes"], 1e-5)
    published = infinity.tensors["teacher_input"].split([grid.num_cells for grid in grids[1:]], dim=1)
    for index, scale in enumerate(scales[1:], start=1):
        found = quantizer.resized(quantizer.latent(bits[:index], scales), scale)
        assert_near(patchify(found.permute(0, 2, 3, 1), patch), published[index - 1], 1e-5)


def test_bits_of_published_latents(infinity: Fixture) -> None:
    quantizer = infinity_quantizer(infinity)
    scales = on_latent(infinity_grids(infinity, "square"), infinity_patch(infinity))
    bits = quantizer.search(infinity.tensors["encoder_out"], scales)
    published = [infinity.tensors[f"encode_bits_{index}"] for index in range(len(scales))]
    assert all(torch.equal(*pair) for pair in zip(bits, published, strict=True))
    assert_near(quantizer.latent(bits, scales), infinity.tensors["encode_summed_codes"], 1e-5)
