"""What is benched: a checkpoint, or a model of a known shape with random weights, always with a vertical branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flashar_cli import checkpoint, hub
from flashar_cli.checkpoint import refuse_too_large
from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    GridConfig,
    ModelConfig,
    VQConfig,
    default_gate_dim,
    read_config,
)
from flashar_cli.decoding.quantize import Scheme, quantize_model
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel, initialise
from flashar_cli.tokenizers.vq import VQTokenizer

RANDOM_WEIGHTS = "random weights"


@dataclass(frozen=True)
class BenchModel:
    """A model that can decode both ways. ``weights`` is ``random weights`` or ``sha256:...``; ``quantize`` names what
    was done to them afterwards. Without ``tokenizer`` nothing is turned into pixels.
    """

    name: str
    model: FlasharModel
    tokenizer: VQTokenizer | None
    weights: str
    branch_added: bool
    quantize: Scheme | None = None


def default_model(device: torch.device) -> str:
    """What is benched when no model is named."""
    return "llamagen-xl" if device.type == "cuda" else "llamagen-b"


def load_subject(
    name: str, res: int | None, random_weights: bool, device: torch.device, dtype: torch.dtype, seed: int
) -> BenchModel:
    """Loads MODEL, or builds its shape with random weights. ``res`` is the side of the pictures in pixels.

    Raises FlasharError for an unknown model, and for a ``res`` that real weights were not trained for.
    """
    if not random_weights:
        # A preset's grid is known before its weights are: don't download them for nothing.
        if name in PRESETS:
            _check_grid(PRESETS[name].config(), res)
        directory = _resolve(name)
        _check_grid(read_config(directory), res)
        loaded = checkpoint.load(directory, device, dtype)
        added = ensure_branch(loaded.model, seed)
        return BenchModel(name, loaded.model, loaded.tokenizer, f"sha256:{checkpoint.weights_sha256(directory)}", added)

    config = config_of(name)
    if res is not None:
        grid = grid_of_res(config.tokenizer, res)
        config = config.model_copy(update={"grid": GridConfig(height=grid.height, width=grid.width)})
    refuse_too_large(config, f"{name} with random weights", device, dtype)
    model = random_model(config, device, dtype, seed)
    tokenizer = None if config.tokenizer is None else random_tokenizer(config.tokenizer, device, seed)
    return BenchModel(name, model, tokenizer, RANDOM_WEIGHTS, ensure_branch(model, seed))


def config_of(name: str) -> ModelConfig:
    """The shape of MODEL, without its weights. Raises FlasharError for an unknown one."""
    return PRESETS[name].config() if name in PRESETS else read_config(hub.resolve(name))


def grid_of_res(tokenizer: VQConfig | None, res: int) -> Grid:
    """The token grid of square pictures of ``res`` pixels. Raises FlasharError where there is none."""
    if tokenizer is None:
        raise FlasharError(f"--res is {res}, but this model has no tokenizer to tell pixels per token; leave --res out")
    if res < tokenizer.downsample or res % tokenizer.downsample:
        raise FlasharError(f"--res is {res}; expected a multiple of {tokenizer.downsample}, the pixels of one token")
    return Grid(res // tokenizer.downsample, res // tokenizer.downsample)


def grids_of(tokenizer: VQConfig | None, sides: Sequence[int]) -> tuple[Grid, ...]:
    """The token grids of several sides in pixels."""
    return tuple(grid_of_res(tokenizer, side) for side in sides)


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int) -> FlasharModel:
    """A model of this shape with fresh weights: as fast as a trained one, and good for nothing else."""
    with torch.device("meta"):
        model = FlasharModel(config)
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        initialise(model, seed)
        # With a head of zeros, as training starts, every greedy decoder draws code 0; their agreement is void then.
        model.backbone.head.weight.normal_(std=0.02, generator=torch.Generator(device).manual_seed(seed))
    return model


def converted(subject: BenchModel, dtype: torch.dtype, scheme: Scheme | None) -> BenchModel:
    """The subject as it is benched: its model cast and, with a scheme, quantised, both in place."""
    subject.model.to(dtype)
    if scheme is not None:
        quantize_model(subject.model, scheme)
    return replace(subject, quantize=scheme)


def set_grid(subject: BenchModel, grid: Grid) -> None:
    """Makes the model one of another grid. Its weights don't depend on the grid, their meaning does."""
    config = subject.model.config
    subject.model.config = config.model_copy(update={"grid": GridConfig(height=grid.height, width=grid.width)})


def random_tokenizer(config: VQConfig, device: torch.device, seed: int) -> VQTokenizer:
    """A tokenizer of this shape with fresh weights, in float32 as trained ones run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VQTokenizer(config).to(device).eval()


def fresh_branch(backbone: BackboneConfig) -> BranchConfig:
    """The default branch: beside the last block, with the paper's gate."""
    gate_dim = default_gate_dim("hidden", backbone.dim, backbone.vocab_size)
    return BranchConfig(layer=backbone.num_layers - 1, depth=1, gate="hidden", gate_dim=gate_dim)


def ensure_branch(model: FlasharModel, seed: int) -> bool:
    """Adds a fresh branch to a base without one; returns whether it did."""
    if model.branch is not None:
        return False
    with torch.no_grad():
        model.add_branch(fresh_branch(model.config.backbone), seed)
    model.eval()
    return True


def _check_grid(config: ModelConfig, res: int | None) -> None:
    if res is None:
        return
    grid = grid_of_res(config.tokenizer, res)
    if grid != config.order_grid:
        raise FlasharError(
            f"--res {res} is a grid of {grid} tokens, but this model is of {config.order_grid}; "
            "leave --res out, or bench the speed of that grid with --random-weights"
        )


def _resolve(name: str) -> Path:
    try:
        return hub.resolve(name)
    except FlasharError as error:
        if name not in PRESETS:
            raise
        raise FlasharError(f"{error}; or bench its shape with --random-weights") from None
