"""The Python API: ``flashar_cli.load(MODEL)``.

Letters: B images, H grid rows, W grid columns, V codebook size, P prefix tokens, F text-feature dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.config import Pruning, RasterConfig, Sampling
from flashar_cli.config.pruning_presets import read_pruning
from flashar_cli.data.conditions import Given, parse
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.images import Request, generate_tokens
from flashar_cli.decoding.quantize import Scheme, check_scheme, quantize_model
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.base import TokenModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Generated:
    """``tokens`` int64 [B, H, W], or of a next-scale model those of all scales that were decoded, one map after the
    other: int64 [B, L], or uint8 [B, L, bits]. ``images`` uint8 [B, height, width, 3], None where the model has no
    tokenizer.
    """

    tokens: Tensor
    images: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ImageModel:
    """A loaded model. ``model`` is the torch module, ``tokenizer`` None where only tokens can be made,
    ``text_tokenizer`` None where the checkpoint has none.
    """

    model: TokenModel
    tokenizer: Any
    text_tokenizer: TextTokenizer | None = None
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False, compare=False)

    @property
    def config(self) -> Any:
        """What the model is: a ``RasterConfig`` or a ``NextScaleConfig``."""
        return self.model.config

    def sampling(self, **settings: Any) -> Sampling:
        """The checkpoint's generation defaults with some replaced; None keeps a default. Raises FlasharError for a
        setting that is no field of ``Sampling`` or out of its range.
        """
        return self.config.generation.changed(**settings)

    def engine(self, optimisation: str = "eager", explain: Callable[[str], None] | None = None) -> Engine:
        """This model's engine at a level of optimisation; it is kept, with its graphs and compiled code. Where it falls
        back to eager decoding, ``explain`` gets a line that says why. Raises FlasharError for an unknown level.
        """
        if optimisation not in self._engines:
            tell = explain or (lambda line: warnings.warn(line, stacklevel=2))
            self._engines[optimisation] = Engine(
                self.model,
                self.tokenizer,
                optimisation,
                lambda reason: tell(f"--optimisation {optimisation}: {reason}; decoding eagerly"),
            )
        return self._engines[optimisation]

    def conditions(
        self,
        labels: Sequence[int] | Tensor | None = None,
        prompts: Sequence[str] | None = None,
        caption_features: Tensor | None = None,
        caption_mask: Tensor | None = None,
        negative_prompts: Sequence[str] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Conditions:
        """What images of a grid (H, W) of tokens shall show: class labels, prompts, or caption features with their
        mask. ``negative_prompts``, one for all prompts or one for each, say what they shall not. Raises FlasharError
        for none or several of these, and for prompts or a grid that this model does not take.
        """
        size = self._grid(grid)
        kinds = [labels is not None, prompts is not None, caption_features is not None]
        if sum(kinds) != 1 or (caption_features is None) != (caption_mask is None):
            raise FlasharError("expected class labels, prompts, or caption features together with their mask")
        negative = None if negative_prompts is None else list(negative_prompts)
        if prompts is not None:
            given = Given(prompts=list(prompts), negative_prompts=negative)
            return parse(given, self.model, self.text_tokenizer, size)[0]
        Given(negative_prompts=negative).refuse_negative("only prompts have negative ones")
        if labels is not None:
            return Conditions(labels=torch.as_tensor(labels, dtype=torch.int64).reshape(-1))
        assert caption_features is not None and caption_mask is not None
        return Conditions(features=caption_features, mask=caption_mask)

    def generate(
        self,
        labels: Sequence[int] | Tensor | None = None,
        *,
        prompts: Sequence[str] | None = None,
        negative_prompts: Sequence[str] | None = None,
        caption_features: Tensor | None = None,
        caption_mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        num_images: int | None = None,
        decoder: str | None = None,
        seed: int = 0,
        batch_size: int = 16,
        optimisation: str = "eager",
        **sampling: Any,
    ) -> Generated:
        """Makes images of class labels, of prompts, or of caption features [B, P, F] with their mask [B, P].

        ``negative_prompts``, one for all prompts or one for each, stand in the place of the unconditional prompt;
        ``grid`` are rows and columns of tokens, for a model that knows grids of any size (default: the model's).
        ``decoder`` names one that the model has (default: the one that it was trained for); ``sampling`` are fields of
        ``config.Sampling``, by default the checkpoint's; ``optimisation`` is a level, such as ``graph`` (CUDA graphs,
        captured at the first batch and kept). Raises FlasharError for conditions or settings that don't fit.
        """
        conditions = self.conditions(labels, prompts, caption_features, caption_mask, negative_prompts, grid)
        request = Request(
            decoder=choose_decoder(self.config, decoder),
            conditions=conditions,
            num_images=len(conditions) if num_images is None else num_images,
            sampling=self.sampling(**sampling),
            grid=self._grid(grid),
            seed=seed,
            batch_size=batch_size,
        )
        engine = self.engine(optimisation)
        batches, images = [], []
        for tokens in generate_tokens(engine, request):
            batches.append(tokens)
            if self.tokenizer is not None:
                images.append(to_uint8(engine.pixels(tokens, request.grid)))
        return Generated(torch.cat(batches), np.concatenate(images) if self.tokenizer else None)

    @torch.inference_mode()
    def logits(
        self,
        tokens: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        *,
        prompts: Sequence[str] | None = None,
        caption_features: Tensor | None = None,
        caption_mask: Tensor | None = None,
        decoder: str | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Teacher-forced logits float32 of tokens as ``generate`` returns them, as ``decoder`` predicts them without
        guidance: [B, H, W, V] of token grids, [B, L, V] of the maps of a next-scale model, [B, L, bits, 2] where tokens
        are bits. ``grid`` (H, W) is that of the last map, where it is not the model's own. Raises FlasharError for
        tokens or conditions that don't fit the model or each other.
        """
        tells_grid = isinstance(self.config, RasterConfig) and self.config.backbone.max_positions is not None
        if tells_grid and tokens.ndim == 3:
            grid = (tokens.shape[1], tokens.shape[2])
        size = self._grid(grid)
        conditions = self.conditions(labels, prompts, caption_features, caption_mask, grid=grid)
        self.model.prefix.check(conditions)
        chosen = choose_decoder(self.config, decoder)
        chosen.check(self.model, conditions, size)
        if len(conditions) != len(tokens):
            raise FlasharError(f"got {len(tokens)} token grids and {len(conditions)} conditions; expected as many")
        most = self.config.num_options - 1
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) <= most:
            raise FlasharError(f"tokens range over {int(tokens.min())}..{int(tokens.max())}; expected 0..{most}")
        expected = chosen.token_shape(self.config, size)
        if tokens.shape[1:] != expected:
            raise FlasharError(f"the tokens of an image are {tuple(tokens.shape[1:])}; expected {expected}")
        device = self.model.device
        return chosen.logits(self.model, self.tokenizer, tokens.to(device), conditions.to(device), size)

    @torch.inference_mode()
    def images(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Tokens as ``generate`` returns them -> uint8 [B, height, width, 3]. ``grid``: as in ``logits``. Raises
        FlasharError for other tokens, and without a tokenizer.
        """
        engine = self.engine()
        if engine.pixel_decoder is None:
            raise FlasharError("this checkpoint has no tokenizer, so it makes tokens only; convert it with --tokenizer")
        size = None if grid is None else self._grid(grid)
        engine.pixel_decoder.check(tokens, size)
        return to_uint8(engine.pixels(tokens, size))

    def _grid(self, wanted: tuple[int, int] | None) -> Grid:
        return self.config.choose_grid(None if wanted is None else Grid(*wanted))


def load(
    model: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Scheme | None = None,
    fastvar: Pruning | str | None = None,
) -> ImageModel:
    """Loads MODEL, a checkpoint directory or a preset. ``dtype`` None: bfloat16 on CUDA, float32 on a CPU.

    ``quantize``: ``int8`` or ``fp8`` weights in blocks and heads, through torchao (`pip install flashar[quant]`).
    ``fastvar``: what the decoders fastvar and truncate of a next-scale model leave out, or the name of a preset or of a
    TOML file of such settings; by default the checkpoint's. Raises FlasharError where the model is missing or damaged,
    and where it can't be quantised here or can't have these settings.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if quantize is not None:
        check_scheme(quantize, device, dtype)
    loaded = checkpoint.load(hub.resolve(str(model)), device, dtype)
    if fastvar is not None:
        pruning = fastvar if isinstance(fastvar, Pruning) else read_pruning(fastvar)
        loaded.model.config = loaded.config.with_fastvar(pruning)
    if quantize is not None:
        quantize_model(loaded.model, quantize)
    return ImageModel(loaded.model, loaded.tokenizer, loaded.text_tokenizer)
