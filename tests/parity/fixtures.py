"""Reads a fixture of published outputs and rebuilds the upstream weights it was computed with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from flashar_cli.models.prefix import Conditions
from tests.parity.fill import tensor_for

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Fixture:
    """``tensors`` are published inputs and outputs."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def upstream_names(self) -> list[str]:
        return list(self.meta["state_dict_shapes"])

    def upstream(self, name: str) -> Tensor:
        """A weight under upstream's name, made anew: all together may be half a gigabyte."""
        tensor = self._filled(name, "")
        if name in ("output.weight", "medusa_output.weight"):
            tensor[3] *= self.meta.get("head_row_3_times", 1)
        for row, factor in self.meta.get("row_times", {}).get(name, {}).items():
            tensor[int(row)] *= factor
        return tensor

    def upstream_state(self) -> dict[str, Tensor]:
        """All weights at once."""
        return {name: self.upstream(name) for name in self.upstream_names}

    def tokenizer_state(self) -> dict[str, Tensor]:
        """All weights of a next-scale model's tokenizer, under upstream's names."""
        return {name: self._filled(name, "vae_") for name in self.meta["vae_state_dict_shapes"]}

    def _filled(self, name: str, part: str) -> Tensor:
        """A weight as it was drawn. A suffix of its name may have a scale of its own; the longest counts."""
        scales = self.meta.get(f"{part}fill_scale_for", {})
        ends = sorted(filter(name.endswith, scales), key=len)
        scale = scales[ends[-1]] if ends else self.meta[f"{part}fill_scale"]
        return tensor_for(name, tuple(self.meta[f"{part}state_dict_shapes"][name]), scale)

    @property
    def conditions(self) -> Conditions:
        if "labels" in self.tensors:
            return Conditions(labels=self.tensors["labels"])
        return Conditions(features=self.tensors["caption_features"], mask=self.tensors["caption_mask"])

    @property
    def convert_arguments(self) -> list[str]:
        """What `flashar convert` must be told: what shapes and keys don't tell."""
        side = round(self.meta["config"]["block_size"] ** 0.5)
        arguments = ["--grid", f"{side}x{side}", "--num-heads", str(self.meta["config"]["n_head"])]
        if self.meta["family"] == "llamagen-flashar":
            arguments += ["--branch-layer", str(self.meta["branch_layer"])]
        if "branch_depth" in self.meta:
            arguments += ["--branch-depth", str(self.meta["branch_depth"])]
        return arguments


def read_fixture(name: str) -> Fixture:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return Fixture(meta, tensors)
