"""Published outputs of next-scale models, and our models with upstream's weights."""

from __future__ import annotations

import re

import torch
from torch.nn.utils.rnn import pad_sequence

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
from flashar_cli.families.keys import KeyTable
from flashar_cli.files.lazy import lazily
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.next_scale import ScaleQuantizer, build_quantizer, var_upstream
from tests.parity.fixtures import Fixture

# Infinity's blocks are counted through its chunks.
VAR_KEYS = KeyTable(
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
INFINITY_KEYS = KeyTable(
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


def has_bits(fixture: Fixture) -> bool:
    """Whether it is of Infinity, not of VAR."""
    return "vae_config" in fixture.meta


def model_of(fixture: Fixture) -> NextScaleModel:
    """Our model with upstream's weights."""
    config = infinity_config(fixture) if has_bits(fixture) else var_config(fixture)
    model = NextScaleModel(config)
    upstream = {_unchunked(name, fixture): tensor for name, tensor in fixture.upstream_state().items()}
    keys = INFINITY_KEYS if has_bits(fixture) else VAR_KEYS
    model.load_state_dict(keys.to_ours(upstream, model.state_dict(), config))
    return model.eval().requires_grad_(False)


def quantizer_of(fixture: Fixture) -> ScaleQuantizer:
    """Our quantizer with upstream's weights, if it has any."""
    if has_bits(fixture):
        return build_quantizer(infinity_config(fixture).tokenizer)
    config, state = var_upstream.read_state(lazily(fixture.tokenizer_state()))
    quantizer = build_quantizer(config)
    prefix = "quantizer."
    own = {name.removeprefix(prefix): lazy.read() for name, lazy in state.items() if name.startswith(prefix)}
    quantizer.load_state_dict(own)
    return quantizer.requires_grad_(False)


def _unchunked(name: str, fixture: Fixture) -> str:
    found = re.fullmatch(r"block_chunks\.(\d+)\.module\.(\d+)\.(.+)", name)
    if found is None:
        return name
    in_chunk = fixture.meta["config"]["depth"] // fixture.meta["config"]["block_chunks"]
    return f"blocks.{int(found[1]) * in_chunk + int(found[2])}.{found[3]}"


def var_config(fixture: Fixture) -> NextScaleConfig:
    """What the published model is."""
    told = fixture.meta["config"]
    scales = tuple((side, side) for side in told["patch_nums"])
    return NextScaleConfig(
        family="var",
        transformer=ScaleTransformerConfig(
            dim=told["embed_dim"],
            num_layers=told["depth"],
            num_heads=told["num_heads"],
            ffn_dim=told["embed_dim"] * fixture.meta["mlp_ratio"],
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


def infinity_config(fixture: Fixture) -> NextScaleConfig:
    """What the published model is."""
    told, images = fixture.meta["config"], fixture.meta["vae_config"]
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


def captions(fixture: Fixture, prefix: str, lengths: list[int]) -> Conditions:
    """Features of captions, which the fixture has one after the other, padded on the right."""
    parts = fixture.tensors[f"{prefix}features"].split(lengths)
    features = pad_sequence(list(parts), batch_first=True)
    return Conditions(features=features, mask=(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float())
