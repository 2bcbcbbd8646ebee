"""The layout of files that LlamaGen introduced; NAR and the FlashAR authors' adaptations have it too.

The weights tell everything about a model's shape but the heads and the grid. These come from ``freqs_cis``, a table of
positions in some files, from the options, or from a published model of the same shape.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    CaptionPrefix,
    ClassPrefix,
    ModelConfig,
    RasterConfig,
    Sampling,
    TokenizerConfig,
    VQConfig,
)
from flashar_cli.errors import FlasharError
from flashar_cli.families.base import ConvertOptions, Family, Preset, RasterFacts
from flashar_cli.families.keys import KeyTable
from flashar_cli.families.source import Source
from flashar_cli.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from flashar_cli.files.lazy import Lazy

IMAGENET = ClassPrefix(num_classes=1000)
VQ16 = VQConfig()
POSITIONS = "freqs_cis"  # [positions, rotations, 2]
GATE_MLP, GATE_LOGIT = "hv_gate_mlp.", "hv_mix_logit"


def backbone(dim: int, num_layers: int, num_heads: int, vocab_size: int = 16384) -> BackboneConfig:
    """A published size; the feed-forward is 8/3 of the width, rounded up to a multiple of 256."""
    ffn_dim = -(-(8 * dim // 3) // 256) * 256
    heads = {"num_heads": num_heads, "num_kv_heads": num_heads}
    return BackboneConfig(dim=dim, num_layers=num_layers, **heads, ffn_dim=ffn_dim, vocab_size=vocab_size)


SIZES = {
    "b": backbone(768, 12, 12),
    "l": backbone(1024, 24, 16),
    "xl": backbone(1280, 36, 20),
    "xxl": backbone(1536, 48, 24),
    "3b": backbone(3200, 24, 32),
}


class LlamaGenLayout(Family):
    """What these families share. ``known`` are published models whose facts hold for files of the same shape."""

    title = "LlamaGen-like model"
    hallmark = "tok_embeddings.weight, layers.0.attention.wqkv.weight and so on"
    tokenizer_title = "LlamaGen VQ tokenizer"
    dropped = (POSITIONS,)
    needed = ("num_heads", "grid", "res", "branch_layer", "branch_depth", "norm_eps", "rope_base")
    known: ClassVar[tuple[Preset[RasterFacts], ...]]
    keys = KeyTable(
        ("cls_embedding.embedding_table.weight", "prefix.embedding.weight"),
        ("cls_embedding.uncond_embedding", "prefix.uncond_embedding"),
        ("cls_embedding.cap_proj.*", "prefix.*"),
        ("tok_embeddings.weight", "backbone.embedding.weight"),
        ("layers.{}.*", "backbone.blocks.{}.*"),
        ("norm.weight", "backbone.norm.weight"),
        ("output.weight", "backbone.head.weight"),
        ("layers.{+}.*", "branch.blocks.{}.*"),
        ("medusa_norm.weight", "branch.norm.weight"),
        ("medusa_output.weight", "branch.head.weight"),
        (f"{GATE_MLP}0.weight", "branch.gate.mlp.fc1.weight"),
        (f"{GATE_MLP}2.*", "branch.gate.mlp.fc2.*"),
        (GATE_LOGIT, "branch.gate.logit"),
    )

    def recognises(self, source: Source) -> bool:
        names = source.state.keys()
        if not {"tok_embeddings.weight", "layers.0.attention.wqkv.weight"} <= names:
            return False
        has_branch = "medusa_output.weight" in names or "medusa_norm.weight" in names
        return self.recognises_parts(has_branch, any(name.startswith((GATE_MLP, GATE_LOGIT)) for name in names))

    @abstractmethod
    def recognises_parts(self, has_branch: bool, has_gate: bool) -> bool:
        """Whether a file with these parts can be of this family."""

    @abstractmethod
    def read_branch(self, source: Source, options: ConvertOptions, num_blocks: int) -> BranchConfig | None:
        """The branch of a file that has ``num_blocks`` blocks, those of the branch included."""

    def read_depth(self, options: ConvertOptions, num_blocks: int) -> int:
        """How many of the file's last blocks are those of the branch."""
        depth = 1 if options.branch_depth is None else options.branch_depth
        if not 1 <= depth < num_blocks:
            raise FlasharError(
                f"--branch-depth is {depth}; expected 1..{num_blocks - 1}: the file has {num_blocks} blocks in all"
            )
        return depth

    def options(self, preset: Preset[RasterFacts]) -> ConvertOptions:
        return ConvertOptions(family=self.name, num_heads=preset.facts.backbone.num_heads, grid=preset.facts.grid)

    def read(self, source: Source, options: ConvertOptions, tokenizer: Any) -> RasterFacts:
        return _Reading(self, source, options, tokenizer).facts()

    def to_upstream(self, state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        assert isinstance(config, RasterConfig)
        if config.branch and config.branch.gate == "hidden" and any(name.startswith("branch.") for name in state):
            raise FlasharError("the 'hidden' gate has no upstream layout; only gates logits, scalar and mean do")
        return super().to_upstream(state, config)

    def read_tokenizer(self, source: Source) -> tuple[TokenizerConfig, dict[str, Lazy]]:
        from flashar_cli.tokenizers.upstream import STATISTICS, config_from_state

        state = {name: tensor for name, tensor in source.state.items() if name not in STATISTICS}
        return config_from_state({name: tensor.shape for name, tensor in state.items()}), state

    def tokenizer_to_upstream(self, state: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        from flashar_cli.tokenizers.upstream import STATISTICS

        return {**state, **{name: torch.zeros(size) for name, size in STATISTICS.items()}}


class _Reading:
    """Reads one file. The order matters: a fact may need those before it."""

    def __init__(
        self, family: LlamaGenLayout, source: Source, options: ConvertOptions, tokenizer: TokenizerConfig | None
    ) -> None:
        self.family, self.source, self.options, self.tokenizer = family, source, options, tokenizer
        self.notes: list[str] = []
        self.vocab_size, self.dim = self.shape("tok_embeddings.weight")
        self.positions = self.read_positions()
        num_blocks = source.count_blocks("layers")
        self.branch = family.read_branch(source, options, num_blocks)
        self.num_layers = num_blocks - (self.branch.depth if self.branch else 0)
        self.prefix = self.read_prefix()
        shape = (self.dim, self.num_layers, self.vocab_size, self.prefix)
        self.preset = next((preset for preset in family.known if _shape(preset) == shape), None)

    def facts(self) -> RasterFacts:
        return RasterFacts(
            family=self.family.name,
            backbone=self.read_backbone(),
            prefix=self.prefix,
            grid=self.read_grid(),
            branch=self.branch,
            tokenizer=self.tokenizer,
            generation=self.preset.facts.generation if self.preset else Sampling(),
            notes=tuple(self.notes),
        )

    def shape(self, name: str) -> tuple[int, int]:
        return self.source.shape(name, self.family.name)

    def read_positions(self) -> tuple[int, int] | None:
        """The number of positions, and of rotations, in ``freqs_cis``."""
        table = self.source.state.get(POSITIONS)
        if table is None:
            return None
        if len(table.shape) != 3 or 0 in table.shape:
            raise FlasharError(
                f"{self.source.path}: {POSITIONS} is {list(table.shape)}; expected [positions, rotations, 2]"
            )
        return table.shape[0], table.shape[1]

    def read_prefix(self) -> ClassPrefix | CaptionPrefix:
        if "cls_embedding.uncond_embedding" in self.source.state:
            length, feature_dim = self.shape("cls_embedding.uncond_embedding")
            return CaptionPrefix(feature_dim=feature_dim, length=length)
        return ClassPrefix(num_classes=self.shape("cls_embedding.embedding_table.weight")[0] - 1)

    def read_backbone(self) -> BackboneConfig:
        num_heads = self.read_num_heads()
        if num_heads < 1 or self.dim % num_heads:
            raise FlasharError(f"--num-heads is {num_heads}; expected a divisor of the width {self.dim}")
        head_dim = self.dim // num_heads
        rows = self.shape("layers.0.attention.wqkv.weight")[0]
        kv_heads, rest = divmod(rows - self.dim, 2 * head_dim)
        if rest or kv_heads < 1 or num_heads % kv_heads or head_dim % 4:
            raise FlasharError(
                f"{self.source.path}: wqkv has {rows} rows, which {num_heads} heads of {head_dim} do not explain; "
                "pass the right --num-heads (head size a multiple of 4)"
            )
        chosen = {name: getattr(self.options, name) for name in ("norm_eps", "rope_base")}
        return BackboneConfig(
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=num_heads,
            num_kv_heads=kv_heads,
            ffn_dim=self.shape("layers.0.feed_forward.w1.weight")[0],
            vocab_size=self.vocab_size,
            **{name: value for name, value in chosen.items() if value is not None},
        )

    def read_num_heads(self) -> int:
        told = None if self.positions is None else self.dim // (2 * self.positions[1])
        wanted = self.options.num_heads
        self.refuse_other(wanted, told, f"--num-heads is {wanted}")
        if wanted is not None or told is not None:
            return wanted or told or 0
        if self.preset is None:
            raise FlasharError(f"the weights of {self.source.path} don't tell the number of heads; pass --num-heads")
        self.notes.append(f"{self.preset.facts.backbone.num_heads} heads as in preset {self.preset.name}")
        return self.preset.facts.backbone.num_heads

    def read_grid(self) -> Grid:
        num_cells = self.positions[0] - self.prefix.longest if self.positions else 0
        side = math.isqrt(max(0, num_cells))
        told = Grid(side, side) if side and side * side == num_cells else None
        wanted = self.wanted_grid()
        self.refuse_other(wanted, told, f"grid {wanted} was asked for")
        if known := wanted or told:
            return known
        if self.preset is None:
            raise FlasharError(
                f"the weights of {self.source.path} don't tell the token grid; pass --grid HxW or --res PIXELS"
            )
        self.notes.append(
            f"grid {self.preset.facts.grid} as in preset {self.preset.name}; pass --grid or --res if it differs"
        )
        return self.preset.facts.grid

    def wanted_grid(self) -> Grid | None:
        wanted, res = self.options.grid, self.options.res
        if res is None:
            return wanted
        factor = (self.tokenizer or (self.preset.facts.tokenizer if self.preset else None) or VQ16).downsample
        if res < factor or res % factor:
            raise FlasharError(f"--res is {res}; expected a multiple of {factor} pixels")
        by_resolution = Grid(res // factor, res // factor)
        if wanted is not None and wanted != by_resolution:
            raise FlasharError(f"--grid {wanted} contradicts --res {res} ({by_resolution} tokens)")
        return by_resolution

    def refuse_other(self, wanted: object, told: object, what: str) -> None:
        if None not in (wanted, told) and wanted != told:
            raise FlasharError(f"{what}, but {POSITIONS} in {self.source.path} says {told}; leave it out")


def _shape(preset: Preset[RasterFacts]) -> tuple[object, ...]:
    return (
        preset.facts.backbone.dim,
        preset.facts.backbone.num_layers,
        preset.facts.backbone.vocab_size,
        preset.facts.prefix,
    )
