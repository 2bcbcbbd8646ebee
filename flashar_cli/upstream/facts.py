"""What a state dict, the options and the presets say together about a model's shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flashar_cli.config import BackboneConfig, BranchConfig, CaptionPrefix, ClassPrefix, GateKind, VQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.families.base import BLOCK_INDEX, Family, Preset
from flashar_cli.grid import Grid


@dataclass(frozen=True)
class ConvertOptions:
    """What weights can't tell. None: take it from the weights, from a preset of the same shape, or from the default."""

    family: str | None = None
    num_heads: int | None = None
    grid: Grid | None = None
    resolution: int | None = None
    branch_layer: int | None = None
    branch_depth: int = 1
    norm_eps: float = 1e-5
    rope_base: float = 10000.0


class Facts:
    """``backbone``, ``prefix``, ``grid`` and ``branch``; ``notes`` say what of it comes from a preset of this shape."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        path: Path,
        options: ConvertOptions,
        family: Family,
        tokenizer: VQConfig | None,
    ) -> None:
        self._state, self._path, self._options, self._family = state, path, options, family
        self._tokenizer = tokenizer
        self._notes: list[str] = []
        self.vocab_size, self.dim = self._matrix("tok_embeddings.weight")
        self._positions = self._read_positions()
        self.num_layers = self._count_layers()
        self.prefix = self._read_prefix()
        self.preset = self._matching_preset()
        self.backbone = self._read_backbone()
        self.grid = self._read_grid()
        self.branch = self._read_branch()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def _matrix(self, name: str) -> tuple[int, int]:
        if name not in self._state:
            raise FlasharError(f"{self._path} lacks {name}; expected a whole {self._family.name} checkpoint")
        shape = self._state[name].shape
        if len(shape) != 2 or 0 in shape:
            raise FlasharError(f"{self._path}: {name} is {list(shape)}; expected a matrix")
        return shape[0], shape[1]

    def _read_positions(self) -> tuple[int, int] | None:
        """Positions and rotations of the table that some files carry, ``freqs_cis`` [positions, rotations, 2]."""
        table = self._state.get("freqs_cis")
        if table is None:
            return None
        if table.ndim != 3 or 0 in table.shape:
            raise FlasharError(f"{self._path}: freqs_cis is {list(table.shape)}; expected [positions, rotations, 2]")
        return table.shape[0], table.shape[1]

    def _count_layers(self) -> int:
        matches = (re.match(rf"layers\.{BLOCK_INDEX}\.", name) for name in self._state)
        indices = {int(match[1]) for match in matches if match}
        total = len(indices)
        if indices != set(range(total)):
            absent = next(index for index in range(total) if index not in indices)
            raise FlasharError(f"{self._path} has blocks up to layers.{max(indices)} and no layers.{absent}")
        if self._family.name == "llamagen":
            if self._options.branch_depth != 1:
                raise FlasharError(
                    f"--branch-depth {self._options.branch_depth} was passed, but {self._path} has no branch"
                )
            return total
        depth = self._options.branch_depth
        if not 1 <= depth < total:
            raise FlasharError(
                f"--branch-depth is {depth}; expected 1..{total - 1}: the file has {total} blocks in all"
            )
        return total - depth

    def _read_prefix(self) -> ClassPrefix | CaptionPrefix:
        if "cls_embedding.uncond_embedding" in self._state:
            length, feature_dim = self._matrix("cls_embedding.uncond_embedding")
            return CaptionPrefix(feature_dim=feature_dim, length=length)
        return ClassPrefix(num_classes=self._matrix("cls_embedding.embedding_table.weight")[0] - 1)

    def _matching_preset(self) -> Preset | None:
        wanted = (self.dim, self.num_layers, self.vocab_size, self.prefix)
        # The authors' adaptations are of 256 x 256 pictures, as NAR's models are.
        name = "llamagen" if self._family.name == "llamagen" else "nar"
        for preset in PRESETS.values():
            shape = (preset.backbone.dim, preset.backbone.num_layers, preset.backbone.vocab_size, preset.prefix)
            if preset.family == name and shape == wanted:
                return preset
        return None

    def _read_backbone(self) -> BackboneConfig:
        num_heads = self._read_num_heads()
        if num_heads < 1 or self.dim % num_heads:
            raise FlasharError(f"--num-heads is {num_heads}; expected a divisor of the width {self.dim}")
        head_dim = self.dim // num_heads
        rows = self._matrix("layers.0.attention.wqkv.weight")[0]
        kv_heads, rest = divmod(rows - self.dim, 2 * head_dim)
        if rest or kv_heads < 1 or num_heads % kv_heads or head_dim % 4:
            raise FlasharError(
                f"{self._path}: wqkv has {rows} rows, which {num_heads} heads of {head_dim} do not explain; "
                "pass the right --num-heads (head size a multiple of 4)"
            )
        return BackboneConfig(
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=num_heads,
            num_kv_heads=kv_heads,
            ffn_dim=self._matrix("layers.0.feed_forward.w1.weight")[0],
            vocab_size=self.vocab_size,
            norm_eps=self._options.norm_eps,
            rope_base=self._options.rope_base,
        )

    def _read_num_heads(self) -> int:
        told = None if self._positions is None else self.dim // (2 * self._positions[1])
        wanted = self._options.num_heads
        if wanted is not None and told is not None and wanted != told:
            raise FlasharError(f"--num-heads is {wanted}, but freqs_cis in {self._path} says {told}; leave it out")
        if wanted is not None or told is not None:
            return wanted or told or 0
        if self.preset is None:
            raise FlasharError(f"the weights of {self._path} don't tell the number of heads; pass --num-heads")
        self._notes.append(f"{self.preset.backbone.num_heads} heads as in preset {self.preset.name}")
        return self.preset.backbone.num_heads

    def _read_grid(self) -> Grid:
        options, told = self._options, None
        if self._positions is not None:
            num_cells = self._positions[0] - self.prefix.length
            side = math.isqrt(max(0, num_cells))
            if side > 0 and side * side == num_cells:
                told = Grid(side, side)
        wanted = options.grid
        if options.resolution is not None:
            tokenizer = self._tokenizer or (self.preset.tokenizer if self.preset else VQConfig())
            factor = tokenizer.downsample
            if options.resolution < factor or options.resolution % factor:
                raise FlasharError(f"--res is {options.resolution}; expected a multiple of {factor} pixels")
            by_resolution = Grid(options.resolution // factor, options.resolution // factor)
            if wanted is not None and wanted != by_resolution:
                raise FlasharError(f"--grid {wanted} contradicts --res {options.resolution} ({by_resolution} tokens)")
            wanted = by_resolution
        if wanted is not None and told is not None and wanted != told:
            raise FlasharError(f"grid {wanted} was asked for, but freqs_cis in {self._path} says {told}; leave it out")
        known = wanted or told
        if known is not None:
            return known
        if self.preset is None:
            raise FlasharError(
                f"the weights of {self._path} don't tell the token grid; pass --grid HxW or --res PIXELS"
            )
        self._notes.append(
            f"grid {self.preset.grid} as in preset {self.preset.name}; pass --grid or --res if it differs"
        )
        return self.preset.grid

    def _read_branch(self) -> BranchConfig | None:
        options = self._options
        if self._family.name == "llamagen":
            if options.branch_layer is not None:
                raise FlasharError(f"--branch-layer {options.branch_layer} was passed, but {self._path} has no branch")
            return None
        layer = options.branch_layer
        if self._family.name == "nar":
            if layer not in (None, self.num_layers):
                raise FlasharError(
                    f"--branch-layer is {layer}; in NAR the branch follows the last block {self.num_layers}"
                )
            return BranchConfig(layer=self.num_layers, depth=options.branch_depth, gate="mean")
        if layer is None or not 0 <= layer <= self.num_layers:
            raise FlasharError(
                f"the weights of {self._path} don't tell where the branch starts; "
                f"pass --branch-layer M with 0 <= M <= {self.num_layers} (got {layer})"
            )
        gate, gate_dim = self._read_gate()
        return BranchConfig(layer=layer, depth=options.branch_depth, gate=gate, gate_dim=gate_dim)

    def _read_gate(self) -> tuple[GateKind, int | None]:
        if any(name.startswith("hv_gate_mlp.") for name in self._state):
            return "logits", self._matrix("hv_gate_mlp.0.weight")[0]
        return ("scalar", None) if "hv_mix_logit" in self._state else ("mean", None)
