"""Upstream files: reading them, telling what they hold, and translating them into checkpoints and back."""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flashar_cli import __version__
from flashar_cli.checkpoint import Loaded, describe_problems, state_problems
from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    CaptionPrefix,
    ClassPrefix,
    GateKind,
    GenerationDefaults,
    GridConfig,
    ModelConfig,
    Provenance,
    VQConfig,
    explain,
)
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS, get_family
from flashar_cli.families.base import Family, Preset
from flashar_cli.files import atomic_file
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers.upstream import STATISTICS, config_from_state
from flashar_cli.tokenizers.vq import VQTokenizer

WRAPPERS = ("model", "module", "state_dict")


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


@dataclass(frozen=True)
class Converted:
    """A model ready to be saved. ``notes`` say which facts came from a preset rather than from the file."""

    config: ModelConfig
    model_state: dict[str, Tensor]
    tokenizer_state: dict[str, Tensor] | None
    notes: tuple[str, ...]


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file or of a pickled ``.pt``/``.pth``/``.bin`` one, bare or under a wrapper key.

    Pickles are read with ``weights_only=True``, so a file that would run code is refused. Raises FlasharError.
    """
    if not path.is_file():
        raise FlasharError(f"{path} is not a file; expected upstream weights (.pt or .safetensors)")
    try:
        document = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"it wants to call {blocked[1]}" if blocked else "its pickle holds more than tensors"
        raise FlasharError(f"{path} is refused: {detail}; expected a file of weights alone") from None
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlasharError(
            f"{path} cannot be read ({reason}); it may be truncated or foreign, download it again"
        ) from None
    return _unwrap(document, path)


def convert(path: Path, options: ConvertOptions, tokenizer_path: Path | None) -> Converted:
    """Translates an upstream GPT file, and a tokenizer file if given. Raises FlasharError that lists every problem."""
    upstream = read_state(path)
    family = guess_family(upstream, options.family, path)
    tokenizer_state, tokenizer_config = None, None
    if tokenizer_path is not None:
        tokenizer_state = read_state(tokenizer_path)
        for statistic in STATISTICS:
            tokenizer_state.pop(statistic, None)
        tokenizer_config = config_from_state({name: tuple(t.shape) for name, t in tokenizer_state.items()})
        _refuse(state_problems(_shapes_of(tokenizer_config), tokenizer_state), tokenizer_path, "LlamaGen VQ tokenizer")
    try:
        facts = _Facts(upstream, path, options, family, tokenizer_config)
    except ValidationError as error:
        raise FlasharError(f"{path} with these options is no model: {explain(error)}") from None
    if tokenizer_config is not None and tokenizer_config.codebook_size != facts.backbone.vocab_size:
        raise FlasharError(
            f"{tokenizer_path} has {tokenizer_config.codebook_size} codes, {path} predicts "
            f"{facts.backbone.vocab_size}; pass the tokenizer this model was trained with"
        )
    config = ModelConfig(
        family=family.name,
        backbone=facts.backbone,
        prefix=facts.prefix,
        grid=GridConfig(height=facts.grid.height, width=facts.grid.width),
        branch=facts.branch,
        tokenizer=tokenizer_config,
        generation=facts.preset.generation if facts.preset else GenerationDefaults(),
        provenance=Provenance(tool_version=__version__, source=path.name, source_sha256=file_sha256(path)),
    )
    num_layers = facts.backbone.num_layers
    state, foreign = {}, []
    for name, tensor in upstream.items():
        ours = family.to_ours(name, num_layers)
        if ours is not None:
            state[ours] = tensor
        elif name not in family.dropped_keys:
            foreign.append(f"unexpected {name}")
    with torch.device("meta"):
        expected = FlasharModel(config).state_dict()
    problems = state_problems(expected, state)
    named = [_in_upstream_words(problem, family, num_layers) for problem in problems]
    _refuse(sorted(named + foreign), path, f"{family.name} with {num_layers} blocks")
    return Converted(config, state, tokenizer_state, facts.notes)


def export(loaded: Loaded) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Upstream-named tensors of model and tokenizer. Raises FlasharError where upstream has no such part."""
    config = loaded.config
    family = get_family(config.family)
    if config.branch is not None and family.name == "llamagen":
        # The authors keep a LlamaGen with a branch under names of their own.
        family = get_family("llamagen-flashar")
    state = loaded.model.state_dict()
    if config.branch is not None and config.branch.gate == "hidden":
        raise FlasharError("the 'hidden' gate has no upstream layout; only gates logits, scalar and mean do")
    model = {family.to_upstream(name, config.backbone.num_layers): tensor for name, tensor in state.items()}
    if loaded.tokenizer is None:
        return model, None
    return model, {**loaded.tokenizer.state_dict(), **{key: torch.zeros(size) for key, size in STATISTICS.items()}}


def write_upstream(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes ``{"model": state}`` as a ``.pt`` file, or the bare tensors as ``.safetensors``; atomically."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with atomic_file(path) as file:
        if path.suffix == ".safetensors":
            file.write(save(tensors))
        else:
            save_pickle({"model": tensors}, file)


def save_pickle(document: object, file: IO[bytes]) -> None:
    """``torch.save`` that reports a full disk as the OSError it is."""
    try:
        torch.save(document, file)
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def guess_family(state: Mapping[str, Tensor], wanted: str | None, path: Path) -> Family:
    """The family that the keys speak for. Raises FlasharError where they contradict ``wanted`` or are no family's."""
    if "tok_embeddings.weight" not in state or "layers.0.attention.wqkv.weight" not in state:
        some = ", ".join(sorted(state)[:3])
        raise FlasharError(
            f"{path} is not a LlamaGen-like model: it has {len(state)} tensors such as {some}; "
            "expected tok_embeddings.weight, layers.0.attention.wqkv.weight and so on"
        )
    has_branch = "medusa_output.weight" in state or "medusa_norm.weight" in state
    has_gate = any(name.startswith(("hv_gate_mlp.", "hv_mix_logit")) for name in state)
    keys_say = "llamagen-flashar" if has_gate else "nar" if has_branch else "llamagen"
    if wanted is None or wanted == keys_say:
        return get_family(keys_say)
    if wanted == "llamagen-flashar" and has_branch:
        return get_family(wanted)  # without gate keys: the authors' fixed mean
    get_family(wanted)
    sign = {
        "llamagen-flashar": "gate keys hv_gate_mlp.* or hv_mix_logit",
        "nar": "medusa_norm and medusa_output without a gate",
        "llamagen": "no medusa_* keys",
    }[keys_say]
    raise FlasharError(f"{path} is {keys_say} by its keys ({sign}), got --family {wanted}; leave --family out")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Facts:
    """What a state dict, the options and the presets say together about a model's shape."""

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
        if len(shape) != 2:
            raise FlasharError(f"{self._path}: {name} is {list(shape)}; expected a matrix")
        return shape[0], shape[1]

    def _count_layers(self) -> int:
        indices = {int(match[1]) for name in self._state if (match := re.match(r"layers\.(\d+)\.", name))}
        total = max(indices) + 1
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
        table = self._state.get("freqs_cis")
        told = self.dim // (2 * table.shape[1]) if table is not None and table.ndim == 3 else None
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
        table, options = self._state.get("freqs_cis"), self._options
        told = None
        if table is not None:
            side = math.isqrt(max(0, len(table) - self.prefix.length))
            if side * side == len(table) - self.prefix.length:
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
        if wanted is not None or told is not None:
            return wanted or told  # type: ignore[return-value]
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


def _load_pickle(path: Path) -> object:
    # Tensor subclasses of FSDP-saved files, and the arguments that LlamaGen's trainer saves beside its weights.
    harmless: list[Any] = [torch._tensor._rebuild_from_type_v2, argparse.Namespace]
    with torch.serialization.safe_globals(harmless):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(document: object, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
            break
    tensors = {k: v for k, v in document.items() if isinstance(v, Tensor)} if isinstance(document, Mapping) else {}
    if not tensors or not isinstance(document, Mapping):
        raise FlasharError(
            f"{path} holds no tensors at its top or under {', '.join(WRAPPERS)}; expected an upstream checkpoint"
        )
    others = [str(name) for name, value in document.items() if not isinstance(value, Tensor)]
    if others:
        raise FlasharError(f"{path} holds {', '.join(others[:5])} beside its tensors; expected tensors alone")
    return tensors


def _shapes_of(config: VQConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return VQTokenizer(config).state_dict()


def _in_upstream_words(problem: str, family: Family, num_layers: int) -> str:
    words = problem.split(" ")
    place = 1 if words[0] in ("missing", "unexpected") else 0
    words[place] = family.to_upstream(words[place], num_layers)
    return " ".join(words)


def _refuse(problems: list[str], path: Path, expected: str) -> None:
    if problems:
        raise FlasharError(f"{path} is not a complete {expected}: {describe_problems(problems)}")
