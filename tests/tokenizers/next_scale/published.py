"""What the fixtures of both next-scale families hold about tokens, latents and images, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flashar_cli.grid import Grid
from flashar_cli.tokenizers import ScaleTokenizer, build_tokenizer
from flashar_cli.tokenizers.next_scale import infinity_upstream, patchify, unpatchify, var_upstream
from tests.parity.fixtures import read_fixture

VAR = ("var_small", "var_shared_aln_small")
INFINITY = ("infinity_small", "infinity_patchify_small")
NAMES = VAR + INFINITY


@dataclass(frozen=True)
class Sum:
    """Tokens of all ``scales`` of the latent, and what they are summed to and decoded to."""

    tokens: list[Tensor]
    scales: list[Grid]
    latent: Tensor  # [B, Z, H, W]
    every_fourth: Tensor | None = None  # rows and columns 0, 4, 8, .. of the images, clamped to [-1, 1]


class Published:
    """A fixture."""

    def __init__(self, name: str) -> None:
        self.fixture = read_fixture(name)
        self.meta, self.tensors = self.fixture.meta, self.fixture.tensors
        self.is_var = self.meta["family"] == "var"
        self.patch = 2 if self.meta["config"].get("apply_spatial_patchify") else 1

    @property
    def module(self) -> Any:
        return var_upstream if self.is_var else infinity_upstream

    @cached_property
    def tokenizer(self) -> ScaleTokenizer:
        config, state = self.module.read_state(self.fixture.tokenizer_state())
        with torch.device("meta"):
            tokenizer = build_tokenizer(config)
        tokenizer.load_state_dict(state, assign=True)
        return tokenizer.eval()

    def grids(self, run: str = "square") -> list[Grid]:
        """The scales in tokens of the transformer."""
        if self.is_var:
            return [Grid(side, side) for side in self.meta["config"]["patch_nums"]]
        return [Grid(height, width) for _, height, width in self.meta["runs"][run]["schedule"]]

    def scales(self, run: str = "square") -> list[Grid]:
        """The scales in positions of the latent."""
        return [Grid(grid.height * self.patch, grid.width * self.patch) for grid in self.grids(run)]

    @property
    def decoded(self) -> list[Sum]:
        """Tokens that a model has made."""
        if self.is_var:
            runs = [f"greedy_cfg{cfg:g}" for cfg in self.meta["cfgs"]]
            return [self._sum(run, self._rows(run), "square", "f_hat", "_decoded_every4") for run in runs]
        return [self._sum(run, self._bits(run), run, "summed_codes", "_decoded_every4") for run in self.meta["runs"]]

    @property
    def random(self) -> Sum:
        """Random tokens, which are not decoded."""
        if self.is_var:
            return Sum(self._rows("teacher_tokens"), self.scales(), self.tensors["teacher_f_hat"])
        bits = [self.tensors[f"teacher_bits_{index}"].squeeze(1) for index in range(len(self.scales()))]
        return Sum(bits, self.scales(), self.tensors["teacher_summed_codes"])

    @property
    def inputs(self) -> list[Tensor]:
        """What the transformer sees of ``random`` before each scale but the first, [B, tokens, Z * patch^2]."""
        return list(self.tensors["teacher_input"].split([grid.num_cells for grid in self.grids()[1:]], dim=1))

    @property
    def image(self) -> Tensor:
        return self.tensors["image_u8"].float() / 127.5 - 1

    @property
    def features(self) -> Tensor:
        """What ``image`` becomes before it is quantised."""
        return self.tensors["latent" if self.is_var else "encoder_out"]

    @property
    def encoded(self) -> Sum:
        """The tokens of ``image``."""
        if self.is_var:
            return Sum(self._rows("codes"), self.scales(), self.tensors["recon_f_hat"], self.tensors["recon_every4"])
        bits = [self.tensors[f"encode_bits_{index}"] for index in range(len(self.scales()))]
        return self._sum("encode", bits, "square", "summed_codes", "_decoded_every4")

    def patched(self, features: Tensor) -> Tensor:
        """[B, Z, h, w] as the transformer sees it."""
        return patchify(features.permute(0, 2, 3, 1), self.patch)

    def _sum(self, name: str, tokens: list[Tensor], run: str, latent: str, images: str) -> Sum:
        return Sum(tokens, self.scales(run), self.tensors[f"{name}_{latent}"], self.tensors[name + images])

    def _rows(self, name: str) -> list[Tensor]:
        """VAR's tokens [B, sum of h*w], cut into maps."""
        parts = self.tensors[name].split([grid.num_cells for grid in self.grids()], dim=1)
        return [part.unflatten(1, (grid.height, grid.width)) for part, grid in zip(parts, self.grids(), strict=True)]

    def _bits(self, run: str) -> list[Tensor]:
        """Infinity's bits [B, h*w, Z * patch^2] as maps of the latent."""
        return [
            unpatchify(self.tensors[f"{run}_bits_{index}"], grid, self.patch)
            for index, grid in enumerate(self.grids(run))
        ]


def every_fourth(images: Tensor) -> Tensor:
    return images.clamp(-1, 1)[..., ::4, ::4]


def assert_near(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
