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
from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.data.conditions import Given, parse
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.images import Request, generate_tokens
from flashar_cli.decoding.quantize import Scheme, check_scheme, quantize_model
from flashar_cli.decoding.static import StaticDecoder
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers import ImageTokenizer
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Generated:
    """``tokens`` int64 [B, H, W]; ``images`` uint8 [B, height, width, 3], None where the model has no tokenizer."""

    tokens: Tensor
    images: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ImageModel:
    """A loaded model. ``model`` is the torch module, ``tokenizer`` None where only tokens can be made,
    ``text_tokenizer`` None where the checkpoint has none.
    """

    model: FlasharModel
    tokenizer: ImageTokenizer | None
    text_tokenizer: TextTokenizer | None = None
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False, compare=False)

    @property
    def config(self) -> RasterConfig:
        """What the model is."""
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
        ``decoder`` names one that the model has (default: flashar where it has a branch); ``sampling`` are fields of
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
                images.append(to_uint8(engine.pixels(tokens)))
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
    ) -> Tensor:
        """Teacher-forced logits float32 [B, H, W, V] of token grids int64 [B, H, W], as ``decoder`` predicts them.
        Raises FlasharError for tokens or conditions that don't fit the model or each other.
        """
        any_grid = self.config.backbone.max_positions is not None and tokens.ndim == 3
        grid = (tokens.shape[1], tokens.shape[2]) if any_grid else None
        conditions = self.conditions(labels, prompts, caption_features, caption_mask, grid=grid)
        self.model.prefix.check(conditions)
        chosen = choose_decoder(self.config, decoder)
        chosen.check(self.model, conditions, self._grid(grid))
        if len(conditions) != len(tokens):
            raise FlasharError(f"got {len(tokens)} token grids and {len(conditions)} conditions; expected as many")
        vocab_size = self.config.backbone.vocab_size
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise FlasharError(
                f"tokens range over {int(tokens.min())}..{int(tokens.max())}; expected 0..{vocab_size - 1}"
            )
        if not isinstance(chosen, StaticDecoder):
            raise FlasharError(f"the decoder {chosen.name} has no logits of given tokens: its steps depend on them")
        order, device = chosen.order(self.config, self._grid(grid)), self.model.device
        prediction = self.model(order.from_raster(tokens.to(device)), conditions.to(device), order)
        return order.to_raster(prediction.logits, trailing=1)

    def _grid(self, wanted: tuple[int, int] | None) -> Grid:
        return self.config.choose_grid(None if wanted is None else Grid(*wanted))

    @torch.inference_mode()
    def images(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Token grids int64 [B, H, W] -> uint8 [B, height, width, 3]. Raises FlasharError without a tokenizer."""
        if self.tokenizer is None:
            raise FlasharError("this checkpoint has no tokenizer, so it makes tokens only; convert it with --tokenizer")
        self.tokenizer.check_tokens(tokens)
        return to_uint8(self.engine().pixels(tokens))


def load(
    model: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Scheme | None = None,
) -> ImageModel:
    """Loads MODEL, a checkpoint directory or a preset. ``dtype`` None: bfloat16 on CUDA, float32 on a CPU.

    ``quantize``: ``int8`` or ``fp8`` weights in blocks and heads, through torchao (`pip install flashar[quant]`).
    Raises FlasharError where the model is missing or damaged, and where it can't be quantised here.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if quantize is not None:
        check_scheme(quantize, device, dtype)
    loaded = checkpoint.load(hub.resolve(str(model)), device, dtype)
    if quantize is not None:
        quantize_model(loaded.model, quantize)
    return ImageModel(loaded.model, loaded.tokenizer, loaded.text_tokenizer)
