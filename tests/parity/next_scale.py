"""Published outputs of next-scale models, and our models with upstream's weights."""

from __future__ import annotations

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
from flashar_cli.families import get_family
from flashar_cli.families.infinity import SCHEDULES, SQUARE
from flashar_cli.files.lazy import lazily
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.next_scale import ScaleQuantizer, build_quantizer, var_upstream
from tests.parity.fixtures import Fixture


def has_bits(fixture: Fixture) -> bool:
    """Whether it is of Infinity, not of VAR."""
    return "vae_config" in fixture.meta


def model_of(fixture: Fixture) -> NextScaleModel:
    """Our model with upstream's weights."""
    config = infinity_config(fixture) if has_bits(fixture) else var_config(fixture)
    model = NextScaleModel(config)
    family = get_family(config.family)
    kept = family.kept(lazily(fixture.upstream_state()), config)
    ours = family.to_ours(kept, model.state_dict(), config)
    model.load_state_dict({name: each.read() for name, each in ours.items()})
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
    last = SQUARE[{"0.06M": 7, "1M": 13}[told["pn"]] - 1]
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
        schedules=SCHEDULES,
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
