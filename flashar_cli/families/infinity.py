"""Infinity (FoundationVision/Infinity): from captions, by bits, in many shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flashar_cli.config import (
    AnyTokenizerConfig,
    BSQConfig,
    CaptionMemory,
    ModelConfig,
    Pruning,
    Sampling,
    ScaleTransformerConfig,
    SchedulesConfig,
)
from flashar_cli.config.next_scale import Schedule
from flashar_cli.config.pruning_presets import PRUNING_PRESETS, pruned_layers
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, Family, HubFiles, NextScaleFacts, Preset
from flashar_cli.families.keys import KeyTable
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from flashar_cli.files.lazy import Lazy

ValueT = TypeVar("ValueT")
NUM_LEVELS = 15  # rows of the table of scales, of which the longest schedule uses 13
# The first 7, 10, 12 and 13 scales of a schedule are images of 0.06, 0.25, 0.6 and 1 million pixels.
LENGTHS = (7, 10, 12, 13)
# Rows and columns of the maps of upright images, by their aspect ratio (infinity/utils/dynamic_resolution.py).
UPRIGHT: tuple[Schedule, ...] = (
    (  # 1.25
        (1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16),
        (25, 20), (30, 24), (35, 28), (45, 36), (55, 44), (70, 56),
    ),
    (  # 1.333
        (1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15),
        (24, 18), (28, 21), (36, 27), (48, 36), (60, 45), (72, 54),
    ),
    (  # 1.5
        (1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14),
        (27, 18), (33, 22), (39, 26), (48, 32), (63, 42), (78, 52),
    ),
    (  # 1.75
        (1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12),
        (28, 16), (35, 20), (42, 24), (56, 32), (70, 40), (84, 48),
    ),
    (  # 2
        (1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11),
        (30, 15), (38, 19), (46, 23), (60, 30), (74, 37), (90, 45),
    ),
    (  # 2.5
        (1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10),
        (30, 12), (40, 16), (50, 20), (65, 26), (80, 32), (100, 40),
    ),
    (  # 3
        (1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9),
        (36, 12), (45, 15), (54, 18), (72, 24), (90, 30), (111, 37),
    ),
)  # fmt: skip
SQUARE: Schedule = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
SCHEDULES = SchedulesConfig(
    longest=(SQUARE, *UPRIGHT, *(tuple((width, height) for height, width in each) for each in UPRIGHT)),
    lengths=LENGTHS,
)
POOL_HEAD, WIDE_POOL_HEAD, WIDE = 128, 64, 4096  # features of a caption to each head that pools them
TELLING = {
    "cfg_uncond": 2,
    "word_embed.weight": 2,
    "lvl_embed.weight": 2,
    "blocks.0.sa.scale_mul_1H11": 4,
    "blocks.0.ffn.fc1.weight": 2,
}


def transformer(dim: int, num_layers: int, num_heads: int, ffn_dim: int, num_levels: int) -> ScaleTransformerConfig:
    """What all sizes share."""
    return ScaleTransformerConfig(
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        ffn_dim=ffn_dim,
        shared_modulation=True,
        positions="rotary",
        num_levels=num_levels,
    )


def pruning_of(num_layers: int) -> Pruning:
    """The released setting of FastVAR, in the same share of the layers."""
    released = PRUNING_PRESETS["infinity-released"]
    return released.model_copy(update=pruned_layers(num_layers))


def pool_heads(feature_dim: int) -> int:
    """Heads of the pooling of captions (infinity/models/infinity.py TextAttentivePool)."""
    return feature_dim // (POOL_HEAD if feature_dim <= WIDE else WIDE_POOL_HEAD)


def preset(
    name: str,
    files: tuple[str, str],
    shape: tuple[int, int, int],
    tokenizer: BSQConfig,
    patch: int,
    generation: Sampling,
) -> Preset[NextScaleFacts]:
    """A published model: its files, and its width, blocks and heads."""
    dim, num_layers, num_heads = shape
    return Preset(
        name=name,
        facts=NextScaleFacts(
            family="infinity",
            transformer=transformer(dim, num_layers, num_heads, 4 * dim, NUM_LEVELS),
            prefix=CaptionMemory(feature_dim=2048, length=512, pool_heads=pool_heads(2048)),
            schedules=SCHEDULES,
            grid=Grid(64, 64),
            tokenizer=tokenizer,
            patch=patch,
            fastvar=pruning_of(num_layers),
            generation=generation,
        ),
        weights=HubFiles("FoundationVision/Infinity", files[:1]),
        tokenizer_weights=HubFiles("FoundationVision/Infinity", files[1:]),
    )


# Guidance, temperature and top-p of upstream's scripts (scripts/infer.sh, tools/interactive_infer_8b.ipynb).
PRESETS = (
    preset(
        "infinity-2b",
        ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth"),
        (2048, 32, 16),
        BSQConfig(),
        patch=1,
        generation=Sampling(cfg_scale=4.0, temperature=0.5, top_p=0.97),
    ),
    preset(
        "infinity-8b",
        ("infinity_8b_weights/*", "infinity_vae_d56_f8_14_patchify.pth"),
        (3584, 40, 28),
        BSQConfig(num_bits=14, multipliers=(1, 2, 4, 4)),
        patch=2,
        generation=Sampling(cfg_scale=3.0, top_p=0.97),
    ),
)


class Infinity(Family):
    """Upstream has its blocks in chunks, ``block_chunks.C.module.I``; here they are counted through."""

    name = "infinity"
    title = "Infinity model"
    hallmark = "cfg_uncond, text_proj_for_sos.*, block_chunks.0.module.0.sa.mat_qkv.weight and so on"
    sign = "cfg_uncond and text_proj_for_sos"
    presets = PRESETS
    dropped = ("*.zero_k_bias",)  # constants
    tokenizer_title = "Infinity image tokenizer"
    needed = ("grid",)
    keys = KeyTable(
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

    def recognises(self, source: Source) -> bool:
        names = set(source.state)
        return {"cfg_uncond", "text_proj_for_sos.ca.mat_q", "shared_ada_lin.1.weight"} <= names

    def kept(self, state: Mapping[str, Lazy], config: ModelConfig) -> dict[str, Lazy]:
        return super().kept(counted_through(state), config)

    def to_files(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        import torch

        constant = {
            name.replace("v_bias", "zero_k_bias"): torch.zeros_like(value)
            for name, value in state.items()
            if name.endswith("v_bias")
        }
        return in_chunks({**state, **constant}, config.num_layers)

    def read(self, source: Source, options: ConvertOptions, tokenizer: Any) -> NextScaleFacts:
        from flashar_cli.tokenizers.shapes import StateShapes

        if tokenizer is None:
            raise FlasharError(
                f"{source.path} predicts bits of its image tokenizer; pass it, e.g. --tokenizer infinity_vae_d32reg.pth"
            )
        state = counted_through(source.state)
        shapes = StateShapes("an Infinity model", {name: tuple(tensor.shape) for name, tensor in state.items()})
        shapes.require(TELLING)
        length, feature_dim = shapes.shapes["cfg_uncond"]
        dim, token_dim = shapes.shapes["word_embed.weight"]
        patch = next((side for side in (1, 2) if tokenizer.num_bits * side**2 == token_dim), None)
        if patch is None:
            raise FlasharError(
                f"{source.path} predicts {token_dim} bits a token, its image tokenizer has {tokenizer.num_bits} a "
                "position; expected as many, or a quarter; pass the tokenizer this model was trained with"
            )
        like = next((each for each in self.presets if each.facts.transformer.dim == dim), self.presets[0])
        return NextScaleFacts(
            family=self.name,
            transformer=transformer(
                dim,
                shapes.count("blocks."),
                shapes.shapes["blocks.0.sa.scale_mul_1H11"][1],
                shapes.shapes["blocks.0.ffn.fc1.weight"][0],
                shapes.shapes["lvl_embed.weight"][0],
            ),
            prefix=CaptionMemory(feature_dim=feature_dim, length=length, pool_heads=pool_heads(feature_dim)),
            schedules=SCHEDULES,
            grid=options.grid or like.facts.grid,
            tokenizer=tokenizer,
            patch=patch,
            fastvar=pruning_of(shapes.count("blocks.")),
            generation=like.facts.generation,
        )

    def read_tokenizer(self, source: Source) -> tuple[AnyTokenizerConfig, dict[str, Lazy]]:
        from flashar_cli.tokenizers.next_scale.infinity_upstream import read_state

        return read_state(source.state)

    def tokenizer_to_upstream(self, state: Mapping[str, Any]) -> dict[str, Any]:
        from flashar_cli.tokenizers.next_scale.infinity_upstream import to_upstream

        return to_upstream(state)


def counted_through(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """The tensors with their blocks under ``blocks.N``, whatever number of chunks they are in."""
    found = {name: re.fullmatch(r"block_chunks\.(\d{1,4})\.module\.(\d{1,4})\.(.+)", name) for name in state}
    places = sorted({(int(match[1]), int(match[2])) for match in found.values() if match})
    numbers = {place: number for number, place in enumerate(places)}

    def flat(name: str) -> str:
        match = found[name]
        return name if match is None else f"blocks.{numbers[int(match[1]), int(match[2])]}.{match[3]}"

    return {flat(name): value for name, value in state.items()}


def in_chunks(state: Mapping[str, ValueT], num_layers: int) -> dict[str, ValueT]:
    """The inverse of ``counted_through``: in eight or four chunks, as published, or else in as few as possible, but not
    in one, with which upstream can't generate.
    """
    num_chunks = next(each for each in (8, 4, *range(2, num_layers + 1), 1) if num_layers % each == 0)
    size = num_layers // num_chunks

    def chunked(name: str) -> str:
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        return f"block_chunks.{int(match[1]) // size}.module.{int(match[1]) % size}.{match[2]}" if match else name

    return {chunked(name): value for name, value in state.items()}
