"""VAR (FoundationVision/VAR): class-conditional, by scales of square maps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flashar_cli.config import (
    AnyTokenizerConfig,
    ClassPrefix,
    ModelConfig,
    MultiScaleVQConfig,
    NextScaleConfig,
    Sampling,
    ScaleTransformerConfig,
    SchedulesConfig,
)
from flashar_cli.config.pruning_presets import last_two
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, Family, HubFiles, NextScaleFacts, Preset
from flashar_cli.families.keys import KeyTable
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from flashar_cli.files.lazy import Lazy

# Sides of the maps of published models, for images of 256 and of 512 pixels.
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
HEAD_DIM = 64  # of every published model
# That of the published FID. Guidance t of upstream is t + 1 here, and grows from none at the first scale.
GENERATION = Sampling(cfg_scale=2.5, cfg_schedule="linear", top_k=900, top_p=0.96)
TELLING = {
    "pos_1LC": 3,
    "word_embed.weight": 2,
    "class_emb.weight": 2,
    "lvl_embed.weight": 2,
    "blocks.0.ffn.fc1.weight": 2,
}


def schedule(sides: tuple[int, ...]) -> SchedulesConfig:
    """Square maps of these sides."""
    return SchedulesConfig(longest=(tuple((side, side) for side in sides),), lengths=(len(sides),))


def facts(
    depth: int, sides: tuple[int, ...], shared: bool, tokenizer: MultiScaleVQConfig | None = None
) -> NextScaleFacts:
    """A published size."""
    dim = HEAD_DIM * depth
    return NextScaleFacts(
        family="var",
        transformer=ScaleTransformerConfig(
            dim=dim,
            num_layers=depth,
            num_heads=depth,
            ffn_dim=4 * dim,
            shared_modulation=shared,
            num_levels=len(sides),
        ),
        prefix=ClassPrefix(num_classes=1000),
        schedules=schedule(sides),
        grid=Grid(sides[-1], sides[-1]),
        tokenizer=tokenizer or MultiScaleVQConfig(),
        fastvar=last_two(depth, len(sides)),
        generation=GENERATION,
    )


def preset(depth: int, sides: tuple[int, ...] = SIDES_256, shared: bool = False) -> Preset[NextScaleFacts]:
    """A published model of ImageNet."""
    return Preset(
        name=f"var-d{depth}",
        facts=facts(depth, sides, shared),
        weights=HubFiles("FoundationVision/var", (f"var_d{depth}.pth",)),
        tokenizer_weights=HubFiles("FoundationVision/var", ("vae_ch160v4096z32.pth",)),
    )


class VAR(Family):
    """The shapes tell everything but the sides of the maps, and the heads where attention is not of cosines."""

    name = "var"
    title = "VAR model"
    hallmark = "pos_1LC, class_emb.weight, blocks.0.attn.mat_qkv.weight and so on"
    sign = "pos_1LC and class_emb"
    presets = (preset(16), preset(20), preset(24), preset(30), preset(36, SIDES_512, shared=True))
    dropped = ("lvl_1L", "attn_bias_for_masking", "blocks.*.attn.zero_k_bias")  # constants
    tokenizer_title = "VAR image tokenizer"
    needed = ("num_heads", "scales")
    keys = KeyTable(
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

    def recognises(self, source: Source) -> bool:
        return {"pos_1LC", "class_emb.weight", "blocks.0.attn.mat_qkv.weight"} <= set(source.state)

    def read(self, source: Source, options: ConvertOptions, tokenizer: Any) -> NextScaleFacts:
        from flashar_cli.tokenizers.shapes import StateShapes

        if tokenizer is None:
            raise FlasharError(
                f"{source.path} needs the codebook of its image tokenizer; pass it, e.g. --tokenizer "
                "vae_ch160v4096z32.pth"
            )
        shapes = StateShapes("a VAR model", {name: tuple(tensor.shape) for name, tensor in source.state.items()})
        shapes.require(TELLING)
        _, num_tokens, dim = shapes.shapes["pos_1LC"]
        sides, notes = self.read_sides(source, options, num_tokens, shapes.shapes["lvl_embed.weight"][0])
        scale = shapes.shapes.get("blocks.0.attn.scale_mul_1H11")
        num_heads = options.num_heads
        if scale is not None and num_heads is not None and num_heads != scale[1]:
            raise FlasharError(f"--num-heads is {num_heads}, but {source.path} says {scale[1]}; leave it out")
        if scale is None and num_heads is None:
            raise FlasharError(f"the weights of {source.path} don't tell the number of heads; pass --num-heads")
        return NextScaleFacts(
            family=self.name,
            transformer=ScaleTransformerConfig(
                dim=dim,
                num_layers=source.count_blocks("blocks"),
                num_heads=num_heads if scale is None else scale[1],
                ffn_dim=shapes.shapes["blocks.0.ffn.fc1.weight"][0],
                cosine_attention=scale is not None,
                shared_modulation="shared_ada_lin.1.weight" in shapes.shapes,
                num_levels=len(sides),
            ),
            prefix=ClassPrefix(num_classes=shapes.shapes["class_emb.weight"][0] - 1),
            schedules=schedule(sides),
            grid=Grid(sides[-1], sides[-1]),
            tokenizer=tokenizer,
            fastvar=last_two(source.count_blocks("blocks"), len(sides)) if len(sides) > 2 else None,
            generation=GENERATION,
            notes=notes,
        )

    def to_files(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        import torch

        assert isinstance(config, NextScaleConfig)
        sizes = [height * width for height, width in config.schedules.longest[0]]
        levels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        seen = levels[:, None] >= levels
        constant = {
            name.replace("v_bias", "zero_k_bias"): torch.zeros_like(state[name])
            for name in state
            if name.endswith("v_bias")
        }
        masking = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        return {**state, **constant, "lvl_1L": levels[None], "attn_bias_for_masking": masking[None, None]}

    def read_sides(
        self, source: Source, options: ConvertOptions, num_tokens: int, num_scales: int
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The sides of the maps, and what was assumed of them. Raises FlasharError where they are not known."""
        told = f"{num_scales} scales of {num_tokens} tokens in all"
        if options.scales is not None:
            sides = options.scales
            rises = all(small < large for small, large in pairwise(sides))
            if not rises or len(sides) != num_scales or sum(side * side for side in sides) != num_tokens:
                raise FlasharError(f"--scales is {','.join(map(str, sides))}, but {source.path} has {told}")
            return sides, ()
        for sides in (SIDES_256, SIDES_512):
            if len(sides) == num_scales and sum(side * side for side in sides) == num_tokens:
                return sides, (f"maps of {', '.join(map(str, sides))} tokens a side, as published",)
        raise FlasharError(
            f"{source.path} has {told}, and doesn't tell their sizes; pass the sides, e.g. --scales 1,2,3,4"
        )

    def read_tokenizer(self, source: Source) -> tuple[AnyTokenizerConfig, dict[str, Lazy]]:
        from flashar_cli.tokenizers.next_scale.var_upstream import read_state

        return read_state(source.state)

    def tokenizer_to_upstream(self, state: Mapping[str, Any]) -> dict[str, Any]:
        from flashar_cli.tokenizers.next_scale.var_upstream import to_upstream

        return to_upstream(state)
