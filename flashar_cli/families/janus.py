"""Janus-Pro (deepseek-ai/Janus) in the layout of transformers: a Llama that reads a prompt, then predicts image tokens
with a table, an aligner and a head of their own. Its tokenizer is LlamaGen's network under other names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from flashar_cli.config import BackboneConfig, Sampling, TextPrefix, VQConfig, validated
from flashar_cli.config.base import ModelT
from flashar_cli.families.base import ConvertOptions, Family, HubFiles, Preset, RasterFacts
from flashar_cli.families.keys import Joined, KeyTable, qkv_rows
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds

CFG_SCALE = 5.0
TokenId = Annotated[int, bounds.TOKEN_ID]


class _Document(BaseModel):
    """A part of upstream's JSON. A missing key has transformers' default; most keys are not needed here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Rope(_Document):
    rope_theta: float = 10000.0
    rope_type: Literal["default"] = "default"


class _Text(_Document):
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: Annotated[int, bounds.HEADS] = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"
    bos_token_id: TokenId | None = None
    pad_token_id: TokenId | None = None


class _Vision(_Document):
    image_size: Annotated[int, bounds.PIXELS] = 384
    patch_size: Annotated[int, bounds.PIXELS] = 16


class _VQ(_Document):
    embed_dim: int = 8
    num_embeddings: int = 16384
    latent_channels: int = 256
    base_channels: int = 128
    channel_multiplier: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    projection_dim: int = 2048
    double_latent: Literal[False] = False
    num_hidden_layers: Literal[2] = 2
    hidden_act: Literal["gelu"] = "gelu"


class _Config(_Document):
    """``config.json``."""

    text_config: _Text
    vision_config: _Vision
    vq_config: _VQ


class _BeginOfImage(_Document):
    boi_token_id: TokenId


class _Generation(_Document):
    """``generation_config.json``; token ids that it lacks are taken from the text model's config."""

    bos_token_id: TokenId
    pad_token_id: TokenId
    generation_kwargs: _BeginOfImage
    guidance_scale: float | None = None


def text_prefix(vocab_size: int, bos: int, boi: int, pad: int) -> TextPrefix:
    """The prompt as the user's turn of a chat, then the token that begins an image."""
    return TextPrefix(
        vocab_size=vocab_size,
        template="<|User|>: {prompt}\n\n<|Assistant|>:",
        begin=(bos,),
        end=(boi,),
        pad_id=pad,
        kept=(bos, boi),
    )


def preset(size: str, dim: int, num_layers: int, num_heads: int, ffn_dim: int) -> Preset[RasterFacts]:
    """A published size."""
    return Preset(
        name=f"janus-pro-{size}",
        facts=RasterFacts(
            family="janus",
            backbone=BackboneConfig(
                dim=dim,
                num_layers=num_layers,
                num_heads=num_heads,
                num_kv_heads=num_heads,
                ffn_dim=ffn_dim,
                vocab_size=16384,
                norm_eps=1e-6,
                rope="1d",
                embedding_dim=8,
                head_hidden_dim=dim,
            ),
            prefix=text_prefix(102400, bos=100000, boi=100016, pad=100015),
            grid=Grid(24, 24),
            tokenizer=VQConfig(),
            generation=Sampling(cfg_scale=CFG_SCALE),
        ),
        weights=HubFiles(f"deepseek-community/Janus-Pro-{size.upper()}", ("*.json", "*.safetensors")),
    )


_LLAMA = "model.language_model"
_VQMODEL = "model.vqmodel"


class Janus(Family):
    """The directory has every fact but the template of prompts."""

    name = "janus"
    title = "Janus model"
    hallmark = "a directory whose config.json has model_type janus"
    sign = "model_type in config.json"
    presets = (preset("1b", 2048, 24, 16, 5632), preset("7b", 4096, 30, 32, 11008))
    text_tokenizer = ("tokenizer.json",)
    dropped = ("model.vision_model.*", "model.aligner.*", "lm_head.weight")  # for images as input, and for text
    keys = KeyTable(
        (f"{_LLAMA}.embed_tokens.weight", "prefix.embedding.weight"),
        ("model.generation_embeddings.weight", "backbone.embedding.weight"),
        ("model.generation_aligner.fc1.*", "backbone.embedding.fc1.*"),
        ("model.generation_aligner.hidden_layers.0.*", "backbone.embedding.fc2.*"),
        (
            Joined(tuple(f"{_LLAMA}.layers.{{}}.self_attn.{part}_proj.weight" for part in "qkv"), qkv_rows),
            "backbone.blocks.{}.attention.wqkv.weight",
        ),
        (f"{_LLAMA}.layers.{{}}.self_attn.o_proj.weight", "backbone.blocks.{}.attention.wo.weight"),
        (f"{_LLAMA}.layers.{{}}.mlp.gate_proj.weight", "backbone.blocks.{}.feed_forward.w1.weight"),
        (f"{_LLAMA}.layers.{{}}.mlp.down_proj.weight", "backbone.blocks.{}.feed_forward.w2.weight"),
        (f"{_LLAMA}.layers.{{}}.mlp.up_proj.weight", "backbone.blocks.{}.feed_forward.w3.weight"),
        (f"{_LLAMA}.layers.{{}}.input_layernorm.weight", "backbone.blocks.{}.attention_norm.weight"),
        (f"{_LLAMA}.layers.{{}}.post_attention_layernorm.weight", "backbone.blocks.{}.ffn_norm.weight"),
        (f"{_LLAMA}.norm.weight", "backbone.norm.weight"),
        ("model.generation_head.proj_out.*", "backbone.head.fc1.*"),
        ("model.generation_head.vision_head.*", "backbone.head.fc2.*"),
        *(
            pair
            for part, levels in (("encoder", "down"), ("decoder", "up"))
            for pair in (
                (f"{_VQMODEL}.{part}.mid.block_1.*", f"tokenizer.{part}.mid.0.*"),
                (f"{_VQMODEL}.{part}.mid.attn_1.*", f"tokenizer.{part}.mid.1.*"),
                (f"{_VQMODEL}.{part}.mid.block_2.*", f"tokenizer.{part}.mid.2.*"),
                (f"{_VQMODEL}.{part}.{levels}.{{}}.block.*", f"tokenizer.{part}.conv_blocks.{{}}.res.*"),
                (f"{_VQMODEL}.{part}.{levels}.{{}}.*", f"tokenizer.{part}.conv_blocks.{{}}.*"),
            )
        ),
        (f"{_VQMODEL}.*", "tokenizer.*"),
    )

    def recognises(self, source: Source) -> bool:
        return source.document("config.json").get("model_type") == "janus"

    def read(self, source: Source, options: ConvertOptions, tokenizer: Any) -> RasterFacts:
        config = _read(source, "config.json", _Config)
        ids = config.text_config.model_dump(include={"bos_token_id", "pad_token_id"}, exclude_none=True)
        special = _read(source, "generation_config.json", _Generation, **ids)
        text, vq = config.text_config, config.vq_config
        side = config.vision_config.image_size // config.vision_config.patch_size
        rope = text.rope_parameters or _Rope(rope_theta=text.rope_theta or 10000.0)
        return RasterFacts(
            family=self.name,
            backbone=BackboneConfig(
                dim=text.hidden_size,
                num_layers=text.num_hidden_layers,
                num_heads=text.num_attention_heads,
                num_kv_heads=text.num_key_value_heads or text.num_attention_heads,
                ffn_dim=text.intermediate_size,
                vocab_size=vq.num_embeddings,
                head_dim=text.head_dim or text.hidden_size // text.num_attention_heads,
                norm_eps=text.rms_norm_eps,
                rope="1d",
                rope_base=rope.rope_theta,
                embedding_dim=vq.embed_dim,
                head_hidden_dim=vq.projection_dim,
            ),
            prefix=text_prefix(
                text.vocab_size, special.bos_token_id, special.generation_kwargs.boi_token_id, special.pad_token_id
            ),
            grid=Grid(side, side),
            tokenizer=VQConfig(
                codebook_size=vq.num_embeddings,
                codebook_dim=vq.embed_dim,
                channels=vq.base_channels,
                encoder_multipliers=vq.channel_multiplier,
                decoder_multipliers=vq.channel_multiplier,
                num_res_blocks=vq.num_res_blocks,
                latent_channels=vq.latent_channels,
            ),
            generation=Sampling(cfg_scale=special.guidance_scale or CFG_SCALE),
        )


def _read(source: Source, name: str, model: type[ModelT], **defaults: int) -> ModelT:
    document = {**defaults, **source.document(name)}
    return validated(document, model, str(source.path / name), "of a Janus model that can be read here")
