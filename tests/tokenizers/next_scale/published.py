"""What the published next-scale fixtures hold about tokens and latents, as the quantizers take them."""

from __future__ import annotations

import torch
from torch import Tensor

from flashar_cli.config import BSQConfig, MultiScaleVQConfig
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.next_scale import ScaleQuantizer, build_quantizer, unpatchify
from tests.parity.fixtures import Fixture

VAR = ("var_small", "var_shared_aln_small")
INFINITY = ("infinity_small", "infinity_patchify_small")


def var_scales(fixture: Fixture) -> list[Grid]:
    return [Grid(side, side) for side in fixture.meta["config"]["patch_nums"]]


def by_scale(rows: Tensor, scales: list[Grid]) -> list[Tensor]:
    """[B, sum of all h*w, *rest] -> for each scale [B, h, w, *rest]."""
    parts = rows.split([scale.num_cells for scale in scales], dim=1)
    return [part.unflatten(1, (scale.height, scale.width)) for part, scale in zip(parts, scales, strict=True)]


def var_quantizer(fixture: Fixture) -> ScaleQuantizer:
    """VAR's, with the published weights."""
    config, state = fixture.meta["config"], fixture.tokenizer_state()
    quantizer = build_quantizer(
        MultiScaleVQConfig(
            codebook_size=config["vocab_size"],
            codebook_dim=config["z_channels"],
            num_residuals=config["share_quant_resi"],
        )
    )
    ours = {"embedding.weight": state["quantize.embedding.weight"]}
    for number in range(config["share_quant_resi"]):
        for part in ("weight", "bias"):
            ours[f"residuals.{number}.{part}"] = state[f"quantize.quant_resi.qresi_ls.{number}.{part}"]
    quantizer.load_state_dict(ours)
    return quantizer


def infinity_quantizer(fixture: Fixture) -> ScaleQuantizer:
    return build_quantizer(BSQConfig(num_bits=fixture.meta["vae_config"]["codebook_dim"]))


def infinity_patch(fixture: Fixture) -> int:
    return 2 if fixture.meta["config"]["apply_spatial_patchify"] else 1


def infinity_grids(fixture: Fixture, run: str) -> list[Grid]:
    """The scales of a run, in tokens."""
    return [Grid(height, width) for _, height, width in fixture.meta["runs"][run]["schedule"]]


def on_latent(grids: list[Grid], patch: int) -> list[Grid]:
    return [Grid(grid.height * patch, grid.width * patch) for grid in grids]


def infinity_bits(fixture: Fixture, run: str) -> list[Tensor]:
    """Of each scale [B, h, w, Z], on the latent."""
    patch = infinity_patch(fixture)
    grids = infinity_grids(fixture, run)
    return [unpatchify(fixture.tensors[f"{run}_bits_{index}"], grid, patch) for index, grid in enumerate(grids)]


def assert_near(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
