"""What `flashar generate` is to make, from what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.api import ImageModel, load
from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import ModelConfig, Pruning, read_config
from flashar_cli.data.conditions import Given, conditions_of
from flashar_cli.decoding.decoder import Decoder
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.images import Request
from flashar_cli.decoding.next_scale.decoder import FASTVAR, TRUNCATE
from flashar_cli.decoding.quantize import Scheme
from flashar_cli.errors import FlasharError
from flashar_cli.generation.store import TokenArray
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds
from flashar_cli.tokenizers.pixels import resized, to_uint8


@dataclass(frozen=True)
class Wanted:
    """What was asked for. None, and what is None in ``sampling``, is the checkpoint's own choice."""

    name: str
    given: Given
    grid: Grid | None
    num_images: int | None
    decoder: str | None
    choose_pruning: Callable[[ModelConfig], Pruning | None]
    sampling: Mapping[str, Any]
    seed: int
    batch_size: int
    optimisation: str
    quantize: Scheme | None
    image_size: int | None = None


@dataclass(frozen=True)
class GenerateJob:
    """What to make, and by which engine."""

    loaded: ImageModel
    engine: Engine
    request: Request
    names: list[str]  # each condition in words
    settings: dict[str, Any]  # what the file of each image holds
    sources: dict[str, Any]  # what else the images follow from, for a run that goes on later
    image_side: int | None = None  # to which images are resized

    @property
    def token_maps(self) -> dict[str, tuple[int, ...]]:
        """As ``Decoder.token_maps``."""
        return self.request.decoder.token_maps(self.engine.model.config, self.request.grid)

    @property
    def tokens(self) -> TokenArray:
        """The tokens of one image."""
        shape = self.request.decoder.token_shape(self.engine.model.config, self.request.grid)
        has_bits = bool(getattr(self.engine.model.config, "token_shape", ()))
        return TokenArray(shape, np.uint8 if has_bits else np.int64, bool(self.token_maps))

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of the images in pixels; None where there are none."""
        config, grid = self.engine.model.config, self.request.grid
        if config.tokenizer is None:
            return None
        if self.image_side is not None:
            return self.image_side, self.image_side
        return grid.height * config.pixels_per_token, grid.width * config.pixels_per_token

    def images(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Tokens of a batch -> uint8 [B, h, w, 3]."""
        pixels = self.engine.pixels(tokens, self.request.grid)
        return to_uint8(pixels if self.image_side is None else resized(pixels, self.image_side))

    def image_settings(self, index: int) -> dict[str, Any]:
        """What the file of image ``index`` says of itself."""
        return {**self.settings, "image": index, "shows": self.names[index % len(self.names)]}

    def warm(self) -> None:
        """Captures and compiles on one batch of full size."""
        request = self.request
        rows = torch.arange(min(request.batch_size, request.num_images)) % len(request.conditions)
        self.engine.warm(request.decoder, request.conditions[rows], request.sampling, request.grid)


def choose_pruned(config: ModelConfig, pruning: Pruning | None, decoder: str | None) -> tuple[ModelConfig, Decoder]:
    """The config with these FastVAR settings, None: its own, and the decoder of this name, None: the default. Raises
    FlasharError.
    """
    if pruning is not None:
        config, decoder = config.with_fastvar(pruning), decoder or FASTVAR.name
        if decoder not in (FASTVAR.name, TRUNCATE.name):
            raise FlasharError(f"--decoder is {decoder}, which leaves nothing out; pass no --fastvar settings")
    return config, choose_decoder(config, decoder)


def plan_job(
    directory: Path,
    wanted: Wanted,
    with_images: bool,
    tokens_out: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    explain: Callable[[str], None],
) -> GenerateJob:
    """Checks that a checkpoint can make what was asked for, before its weights are read, and loads it. ``explain`` is
    told why an optimisation is impossible. Raises FlasharError.
    """
    config = read_config(directory)
    if with_images and config.tokenizer is None:
        raise FlasharError(
            f"{wanted.name} has no tokenizer, so it makes tokens only; pass --no-images or --tokens-out FILE.npy"
        )
    if wanted.image_size is not None:
        bounds.IMAGE_SIDE.check("--image-size", wanted.image_size)
    sampling, grid = config.generation.changed(**wanted.sampling), config.choose_grid(wanted.grid)
    if wanted.image_size is not None and grid.height != grid.width:
        raise FlasharError(f"--image-size makes square images, but those of the grid {grid} are not; leave it out")
    pruning = wanted.choose_pruning(config)
    config, decoder = choose_pruned(config, pruning, wanted.decoder)
    if tokens_out is not None and tokens_out.suffix != (suffix := _token_suffix(decoder, config, grid)):
        raise FlasharError(f"--tokens-out is {tokens_out}; the tokens of this model go into a file FILE{suffix}")
    text_tokenizer = checkpoint.read_text_tokenizer(directory, config)
    conditions, names = conditions_of(config, text_tokenizer, grid).parse(wanted.given, device)
    request = Request(
        decoder=decoder,
        conditions=conditions,
        num_images=len(conditions) if wanted.num_images is None else wanted.num_images,
        sampling=sampling,
        grid=grid,
        seed=wanted.seed,
        batch_size=wanted.batch_size,
    )
    request.check(checkpoint.model_on_meta(config))
    loaded = load(str(directory), device, dtype, wanted.quantize, pruning)
    request.check(loaded.model)
    settings = {
        "model": wanted.name,
        "decoder": request.decoder.name,
        "grid": str(grid),
        "seed": wanted.seed,
        **sampling.model_dump(mode="json"),
        **decoder.settings(config),
        "quantize": wanted.quantize,
        **({} if wanted.image_size is None else {"image_side": wanted.image_size}),
    }
    sources = {
        "model_sha256": checkpoint.weights_sha256(directory),
        "config": loaded.config.model_dump(mode="json"),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }
    engine = loaded.engine(wanted.optimisation, explain)
    return GenerateJob(loaded, engine, request, names, settings, sources, wanted.image_size)


def _token_suffix(decoder: Decoder, config: ModelConfig, grid: Grid) -> str:
    return ".npz" if decoder.token_maps(config, grid) else ".npy"
