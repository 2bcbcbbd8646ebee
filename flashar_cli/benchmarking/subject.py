"""What is benched: a checkpoint, or a model of a known shape with random weights; a raster one always with a branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.checkpoints.checkpoint import refuse_too_large
from flashar_cli.config import AnyTokenizerConfig, BranchConfig, ModelConfig, Pruning, RasterConfig, read_config
from flashar_cli.decoding.quantize import Scheme, quantize_model
from flashar_cli.errors import FlasharError
from flashar_cli.families import PRESETS, get_family
from flashar_cli.grid import Grid
from flashar_cli.models import build_model
from flashar_cli.models.base import TokenModel
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.tokenizers import build_tokenizer

PruningChoice = Callable[[ModelConfig], Pruning | None]


@dataclass(frozen=True)
class BenchModel:
    """A model that every arm can decode."""

    name: str
    model: TokenModel
    tokenizer: Any  # None where the checkpoint has none
    weights: str  # "random weights" or "sha256:..."
    branch_added: bool
    quantize: Scheme | None = None
    wants_pixels: bool = True

    @property
    def makes_pixels(self) -> bool:
        """Whether tokens are turned into pixels."""
        return self.wants_pixels and self.tokenizer is not None


def load_subject(
    name: str,
    sides: tuple[int, ...],
    random_weights: bool,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    layers: int | None = None,
    choose_pruning: PruningChoice = lambda config: None,
) -> BenchModel:
    """Loads MODEL, or builds its shape with random weights, with ``layers`` of its blocks alone. ``sides`` are those of
    the images in pixels; none: the model's own. ``choose_pruning`` says what FastVAR leaves out; None: the model does.

    Raises FlasharError for an unknown model, for sides that real weights were not trained for, for ``layers`` of real
    weights or more than there are, and for what FastVAR can't leave out.
    """
    if not random_weights:
        if layers is not None:
            raise FlasharError(f"--layers is {layers}, but trained weights need all their blocks; add --random-weights")
        # A preset's grid is known without its weights: check it before they are downloaded.
        if name in PRESETS:
            _check_grids(config_of(name), sides)
        directory = _resolve(name)
        config = config_of(str(directory))
        _check_grids(config, sides)
        pruning = choose_pruning(config)
        config = config if pruning is None else config.with_fastvar(pruning)
        loaded = checkpoint.load(directory, device, dtype)
        loaded.model.config = config
        added = ensure_branch(loaded.model, seed)
        return BenchModel(name, loaded.model, loaded.tokenizer, f"sha256:{checkpoint.weights_sha256(directory)}", added)

    config = config_of(name)
    if sides:
        config = config.with_grids([grid_of_res(config, side) for side in sides])
    if (pruning := choose_pruning(config)) is not None:
        config = config.with_fastvar(pruning)
    if layers is not None:
        if layers > config.num_layers:
            raise FlasharError(f"--layers is {layers}; expected at most {config.num_layers}, the blocks of this model")
        name = f"{name}, {layers} of {config.num_layers} layers"
        config = config.with_layers(layers)
    refuse_too_large(_whole(config), f"{name} with random weights", device, dtype)
    model = random_model(config, device, dtype, seed)
    tokenizer = None if config.tokenizer is None else random_tokenizer(config.tokenizer, device, seed)
    return BenchModel(name, model, tokenizer, "random weights", ensure_branch(model, seed))


def config_of(name: str) -> ModelConfig:
    """The shape of MODEL, without its weights. Raises FlasharError for an unknown one."""
    return PRESETS[name].config() if name in PRESETS else read_config(hub.resolve(name))


def grid_of_res(config: ModelConfig, res: int) -> Grid:
    """The token grid of square images of ``res`` pixels. Raises FlasharError where there is none."""
    if config.tokenizer is None:
        raise FlasharError(f"--res is {res}, but this model has no tokenizer to tell pixels per token; leave --res out")
    factor = config.pixels_per_token
    if res < factor or res % factor:
        raise FlasharError(f"--res is {res}; expected a multiple of {factor}, the pixels of one token")
    return Grid(res // factor, res // factor)


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int) -> TokenModel:
    """A model of this shape with fresh weights: as fast as a trained one."""
    with torch.device("meta"):
        model = build_model(config)
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


def random_tokenizer(config: AnyTokenizerConfig, device: torch.device, seed: int) -> Any:
    """A tokenizer of this shape with fresh weights, in float32 as trained ones run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_tokenizer(config).to(device).eval()


def ensure_branch(model: TokenModel, seed: int) -> bool:
    """Adds a fresh branch, beside the last blocks, to a raster base; returns whether it did."""
    if not isinstance(model, FlasharModel) or not model.config.is_base:
        return False
    with torch.no_grad():
        model.add_branch(_new_branch(model.config), seed)
    model.eval()
    return True


def _whole(config: ModelConfig) -> ModelConfig:
    """The config with the branch that ``ensure_branch`` adds."""
    if not isinstance(config, RasterConfig) or not config.is_base:
        return config
    return config.model_copy(update={"branch": _new_branch(config)})


def _new_branch(base: RasterConfig) -> BranchConfig:
    return get_family(base.family).new_branch(base.backbone)


def _check_grids(config: ModelConfig, sides: tuple[int, ...]) -> None:
    """Raises FlasharError for grids that these weights were not trained for."""
    for side in sides:
        grid = grid_of_res(config, side)
        try:
            config.choose_grid(grid)
        except FlasharError as error:
            raise FlasharError(
                f"--res {side} is a grid of {grid} tokens: {error}; leave --res out, or bench the speed of that grid "
                "with --random-weights"
            ) from None


def _resolve(name: str) -> Path:
    try:
        return hub.resolve(name)
    except FlasharError as error:
        if name not in PRESETS:
            raise
        raise FlasharError(f"{error}; or bench its shape with --random-weights") from None
