"""Published outputs of next-scale models, and our models with upstream's weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from flashar_cli.config import (
    BSQConfig,
    CaptionMemory,
    ClassPrefix,
    GridConfig,
    MultiScaleVQConfig,
    NextScaleConfig,
    Provenance,
    ScaleTransformerConfig,
    SchedulesConfig,
)
from flashar_cli.config.next_scale import Schedule
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from tests.parity.fill import tensor_for

DATA = Path(__file__).parent / "data"
# Our names and upstream's, as in families/keys.py. Infinity's blocks are counted through its chunks.
VAR_NAMES = (
    ("class_emb.weight", "prefix.embedding.weight"),
    ("pos_start", "start"),
    ("pos_1LC", "positions"),
    ("lvl_embed.weight", "levels.weight"),
    ("word_embed.*", "embedding.*"),
    ("shared_ada_lin.1.*", "modulation.*"),
    ("blocks.{}.ada_lin.1.*", "blocks.{}.modulation.*"),
    ("blocks.{}.ada_gss", "blocks.{}.offsets"),
    ("blocks.{}.attn.scale_mul_1H11", "blocks.{}.attention.log_scale"),
    ("blocks.{}.attn.q_bias", "blocks.{}.attention.q_bias"),
    ("blocks.{}.attn.v_bias", "blocks.{}.attention.v_bias"),
    ("blocks.{}.attn.mat_qkv.weight", "blocks.{}.attention.wqkv.weight"),
    ("blocks.{}.attn.proj.*", "blocks.{}.attention.wo.*"),
    ("blocks.{}.ffn.fc1.*", "blocks.{}.feed_forward.w1.*"),
    ("blocks.{}.ffn.fc2.*", "blocks.{}.feed_forward.w2.*"),
    ("head_nm.ada_lin.1.*", "head.modulation.*"),
    ("head.*", "head.out.*"),
)
INFINITY_NAMES = (
    ("cfg_uncond", "prefix.uncond_embedding"),
    ("text_norm.weight", "prefix.norm.weight"),
    ("text_proj_for_sos.ca.mat_q", "prefix.pool.query"),
    ("text_proj_for_sos.ca.mat_kv.weight", "prefix.pool.wkv.weight"),
    ("text_proj_for_sos.ca.v_bias", "prefix.pool.v_bias"),
    ("text_proj_for_sos.ca.proj.*", "prefix.pool.wo.*"),
    ("text_proj_for_ca.0.*", "prefix.memory.w1.*"),
    ("text_proj_for_ca.2.*", "prefix.memory.w2.*"),
    ("pos_start", "start"),
    ("lvl_embed.weight", "levels.weight"),
    ("word_embed.*", "embedding.*"),
    ("shared_ada_lin.1.*", "modulation.*"),
    ("blocks.{}.ada_gss", "blocks.{}.offsets"),
    ("blocks.{}.sa.scale_mul_1H11", "blocks.{}.attention.log_scale"),
    ("blocks.{}.sa.q_bias", "blocks.{}.attention.q_bias"),
    ("blocks.{}.sa.v_bias", "blocks.{}.attention.v_bias"),
    ("blocks.{}.sa.mat_qkv.weight", "blocks.{}.attention.wqkv.weight"),
    ("blocks.{}.sa.proj.*", "blocks.{}.attention.wo.*"),
    ("blocks.{}.ca_norm.*", "blocks.{}.cross_norm.*"),
    ("blocks.{}.ca.mat_q.*", "blocks.{}.cross_attention.wq.*"),
    ("blocks.{}.ca.mat_kv.weight", "blocks.{}.cross_attention.wkv.weight"),
    ("blocks.{}.ca.v_bias", "blocks.{}.cross_attention.v_bias"),
    ("blocks.{}.ca.proj.*", "blocks.{}.cross_attention.wo.*"),
    ("blocks.{}.ffn.fc1.*", "blocks.{}.feed_forward.w1.*"),
    ("blocks.{}.ffn.fc2.*", "blocks.{}.feed_forward.w2.*"),
    ("head_nm.ada_lin.1.*", "head.modulation.*"),
    ("head.*", "head.out.*"),
)
# Schedules of pictures of a million pixels by height / width, and how many scales of them smaller pictures have
# (FoundationVision/Infinity infinity/utils/dynamic_resolution.py).
SCHEDULES: dict[float, Schedule] = {
    1.0: tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)),
    1.5: tuple(
        zip(
            (1, 2, 3, 6, 9, 15, 21, 27, 33, 39, 48, 63, 78),
            (1, 2, 2, 4, 6, 10, 14, 18, 22, 26, 32, 42, 52),
            strict=True,
        )
    ),
    0.571: tuple(
        zip(
            (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48),
            (1, 2, 3, 7, 11, 14, 21, 28, 35, 42, 56, 70, 84),
            strict=True,
        )
    ),
}
LENGTHS = (7, 10, 12, 13)


@dataclass(frozen=True)
class ScaleFixture:
    """``tensors`` are published inputs and outputs."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def bits(self) -> bool:
        return "codebook_dim" in self.meta.get("vae_config", {})

    def weight(self, name: str) -> Tensor:
        """A weight of the transformer under upstream's name."""
        return self._filled(name, "", self.meta["state_dict_shapes"])

    def tokenizer_weight(self, name: str) -> Tensor:
        """A weight of the image tokenizer under upstream's name."""
        return self._filled(name, "vae_", self.meta["vae_state_dict_shapes"])

    def _filled(self, name: str, kind: str, shapes: dict[str, list[int]]) -> Tensor:
        scales = self.meta.get(f"{kind}fill_scale_for", {})
        suffixes = sorted(filter(name.endswith, scales), key=len)
        scale = scales[suffixes[-1]] if suffixes else self.meta[f"{kind}fill_scale"]
        tensor = tensor_for(name, tuple(shapes[name]), scale)
        for row, factor in self.meta.get("row_times", {}).get(name, {}).items():
            tensor[int(row)] *= factor
        return tensor

    def state(self) -> dict[str, Tensor]:
        """All weights of the transformer under our names."""
        return {self.our_name(name): self.weight(name) for name in self.meta["state_dict_shapes"]}

    def our_name(self, theirs: str) -> str:
        chunked = re.fullmatch(r"block_chunks\.(\d+)\.module\.(\d+)\.(.+)", theirs)
        if chunked:
            in_chunk = self.meta["config"]["depth"] // self.meta["config"]["block_chunks"]
            theirs = f"blocks.{int(chunked[1]) * in_chunk + int(chunked[2])}.{chunked[3]}"
        for pattern, ours in INFINITY_NAMES if self.bits else VAR_NAMES:
            match = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"), theirs)
            if match:
                values = iter(match.groups())
                return "".join(next(values) if part in ("{}", "*") else part for part in re.split(r"(\{\}|\*)", ours))
        raise KeyError(theirs)

    def model(self) -> NextScaleModel:
        """Our model with upstream's weights."""
        model = NextScaleModel(self.config())
        model.load_state_dict(self.state())
        return model.eval().requires_grad_(False)

    def config(self) -> NextScaleConfig:
        """What the published model is."""
        told = self.meta["config"]
        if self.bits:
            return self._infinity()
        scales = tuple((side, side) for side in told["patch_nums"])
        return NextScaleConfig(
            family="var",
            transformer=ScaleTransformerConfig(
                dim=told["embed_dim"],
                num_layers=told["depth"],
                num_heads=told["num_heads"],
                ffn_dim=told["embed_dim"] * self.meta["mlp_ratio"],
                cosine_attention=told["attn_l2_norm"],
                shared_modulation=told["shared_aln"],
                num_levels=len(scales),
            ),
            prefix=ClassPrefix(num_classes=told["num_classes"]),
            grid=GridConfig(height=scales[-1][0], width=scales[-1][1]),
            schedules=SchedulesConfig(longest=(scales,), lengths=(len(scales),)),
            tokenizer=MultiScaleVQConfig(
                codebook_size=told["vocab_size"],
                codebook_dim=told["z_channels"],
                channels=told["vae_ch"],
                num_residuals=told["share_quant_resi"],
            ),
            provenance=Provenance(tool_version="test"),
        )

    def _infinity(self) -> NextScaleConfig:
        told, images = self.meta["config"], self.meta["vae_config"]
        last = SCHEDULES[1.0][{"0.06M": 7, "1M": 13}[told["pn"]] - 1]
        return NextScaleConfig(
            family="infinity",
            transformer=ScaleTransformerConfig(
                dim=told["embed_dim"],
                num_layers=told["depth"],
                num_heads=told["num_heads"],
                ffn_dim=told["embed_dim"] * told["mlp_ratio"],
                shared_modulation=True,
                positions="rotary",
                num_levels=15,
            ),
            prefix=CaptionMemory(
                feature_dim=told["text_channels"], length=told["text_maxlen"], pool_heads=told["text_channels"] // 128
            ),
            grid=GridConfig(height=last[0], width=last[1]),
            schedules=SchedulesConfig(longest=tuple(SCHEDULES.values()), lengths=LENGTHS),
            patch=2 if told["apply_spatial_patchify"] else 1,
            tokenizer=BSQConfig(
                num_bits=images["codebook_dim"],
                channels=images["base_ch"],
                multipliers=images["ch_mult"],
                num_res_blocks=images["num_res_blocks"],
            ),
            provenance=Provenance(tool_version="test"),
        )

    def captions(self, prefix: str, lengths: list[int]) -> Conditions:
        """Features of captions, which the fixture has one after the other, padded on the right."""
        parts = self.tensors[f"{prefix}features"].split(lengths)
        features = parts[0].new_zeros(len(parts), max(lengths), parts[0].shape[1])
        mask = features.new_zeros(len(parts), max(lengths))
        for row, part in enumerate(parts):
            features[row, : len(part)] = part
            mask[row, : len(part)] = 1
        return Conditions(features=features, mask=mask)


def read_fixture(name: str) -> ScaleFixture:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    return ScaleFixture(meta, tensors)
