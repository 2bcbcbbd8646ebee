"""What is benched: a checkpoint, or a model of a known shape with random weights, always with a vertical branch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.checkpoints.checkpoint import refuse_too_large
from flashar_cli.config import (
    BranchConfig,
    GridConfig,
    RasterConfig,
    TokenizerConfig,
    raster_only,
    read_config,
)
from flashar_cli.decoding.quantize import Scheme, quantize_model
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS, get_family
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers import ImageTokenizer, build_tokenizer


@dataclass(frozen=True)
class BenchModel:
    """A model that can decode both ways."""

    name: str
    model: FlasharModel
    tokenizer: ImageTokenizer | None  # None: nothing is turned into pixels
    weights: str  # "random weights" or "sha256:..."
    branch_added: bool
    quantize: Scheme | None = None


def load_subject(
    name: str,
    res: int | None,
    random_weights: bool,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    layers: int | None = None,
) -> BenchModel:
    """Loads MODEL, or builds its shape with random weights, with ``layers`` of its blocks alone. ``res`` is the side of
    the images in pixels.

    Raises FlasharError for an unknown model, for a ``res`` that real weights were not trained for, and for ``layers``
    of real weights or more than there are.
    """
    if not random_weights:
        if layers is not None:
            raise FlasharError(f"--layers is {layers}, but trained weights need all their blocks; add --random-weights")
        # A preset's grid is known without its weights: check it before they are downloaded.
        if name in PRESETS:
            _check_grid(config_of(name), res)
        directory = _resolve(name)
        _check_grid(config_of(str(directory)), res)
        loaded = checkpoint.load(directory, device, dtype)
        added = ensure_branch(loaded.model, seed)
        return BenchModel(name, loaded.model, loaded.tokenizer, f"sha256:{checkpoint.weights_sha256(directory)}", added)

    config = config_of(name)
    if res is not None:
        grid = grid_of_res(config.tokenizer, res)
        config = config.model_copy(update={"grid": GridConfig(height=grid.height, width=grid.width)})
    if layers is not None:
        name = f"{name}, {layers} of {config.backbone.num_layers} layers"
        config = _shallow(config, layers)
    whole = config.model_copy(update={"branch": config.branch or _new_branch(config)})
    refuse_too_large(whole, f"{name} with random weights", device, dtype)
    model = random_model(config, device, dtype, seed)
    tokenizer = None if config.tokenizer is None else random_tokenizer(config.tokenizer, device, seed)
    return BenchModel(name, model, tokenizer, "random weights", ensure_branch(model, seed))


def config_of(name: str) -> RasterConfig:
    """The shape of MODEL, without its weights. Raises FlasharError for an unknown one."""
    config = PRESETS[name].config() if name in PRESETS else read_config(hub.resolve(name))
    return raster_only(config, "bench")


def _shallow(config: RasterConfig, layers: int) -> RasterConfig:
    """The config with so many backbone blocks; a branch stays where it was, or begins after the last one."""
    backbone, branch = config.backbone, config.branch
    if layers > backbone.num_layers:
        raise FlasharError(f"--layers is {layers}; expected at most {backbone.num_layers}, the blocks of this model")
    fewer = {"backbone": backbone.model_copy(update={"num_layers": layers})}
    if branch is None:
        return config.model_copy(update=fewer)
    return config.model_copy(update={**fewer, "branch": branch.model_copy(update={"layer": min(branch.layer, layers)})})


def grid_of_res(tokenizer: TokenizerConfig | None, res: int) -> Grid:
    """The token grid of square images of ``res`` pixels. Raises FlasharError where there is none."""
    if tokenizer is None:
        raise FlasharError(f"--res is {res}, but this model has no tokenizer to tell pixels per token; leave --res out")
    if res < tokenizer.downsample or res % tokenizer.downsample:
        raise FlasharError(f"--res is {res}; expected a multiple of {tokenizer.downsample}, the pixels of one token")
    return Grid(res // tokenizer.downsample, res // tokenizer.downsample)


def random_model(config: RasterConfig, device: torch.device, dtype: torch.dtype, seed: int) -> FlasharModel:
    """A model of this shape with fresh weights: as fast as a trained one."""
    with torch.device("meta"):
        model = FlasharModel(config)
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        # With the zero head that training starts from, every greedy decoder would take token 0 and agree.
        model.initialise(seed, zero_head=False)
    return model


def converted(subject: BenchModel, dtype: torch.dtype, scheme: Scheme | None) -> BenchModel:
    """The subject as it is benched: its model cast and, with a scheme, quantised, both in place."""
    subject.model.to(dtype)
    if scheme is not None:
        quantize_model(subject.model, scheme)
    return replace(subject, quantize=scheme)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, as reports have it."""
    return str(dtype).removeprefix("torch.")


def random_tokenizer(config: TokenizerConfig, device: torch.device, seed: int) -> ImageTokenizer:
    """A tokenizer of this shape with fresh weights, in float32 as trained ones run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_tokenizer(config).to(device).eval()


def ensure_branch(model: FlasharModel, seed: int) -> bool:
    """Adds a fresh branch, beside the last blocks, to a base without one; returns whether it did."""
    if model.branch is not None:
        return False
    with torch.no_grad():
        model.add_branch(_new_branch(model.config), seed)
    model.eval()
    return True


def _new_branch(base: RasterConfig) -> BranchConfig:
    return get_family(base.family).new_branch(base.backbone)


def _check_grid(config: RasterConfig, res: int | None) -> None:
    if res is None or config.backbone.max_positions is not None:
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
