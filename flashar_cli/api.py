"""The Python API: ``flashar_cli.load(MODEL)``.

Letters: B pictures, H grid rows, W grid columns, V codebook size, P prefix tokens, F text-feature dim.
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

from flashar_cli import checkpoint, hub
from flashar_cli.config import ModelConfig
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.engine import Engine, Optimisation
from flashar_cli.decoding.generate import generate_tokens
from flashar_cli.decoding.quantize import Scheme, check_scheme, quantize_model
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.vq import VQTokenizer


@dataclass(frozen=True)
class Generated:
    """``tokens`` int64 [B, H, W]; ``images`` uint8 [B, height, width, 3], None where the model has no tokenizer."""

    tokens: Tensor
    images: NDArray[np.uint8] | None


@dataclass(frozen=True)
class ImageModel:
    """A loaded model. ``model`` is the torch module, ``tokenizer`` None where only tokens can be made."""

    model: FlasharModel
    tokenizer: VQTokenizer | None
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False, compare=False)

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        return self.model.config

    def sampling(self, **settings: Any) -> SamplingParams:
        """The checkpoint's generation defaults with some of them replaced; None keeps a default."""
        given = {name: value for name, value in settings.items() if value is not None}
        return SamplingParams(**{**self.config.generation.model_dump(), **given})

    def engine(self, optimisation: Optimisation = "eager", explain: Callable[[str], None] | None = None) -> Engine:
        """This model's decoder of an optimisation, kept with its graphs and compiled code. ``explain`` gets the line
        that says why, where it falls back to eager decoding. Raises FlasharError for an unknown optimisation.
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

    def generate(
        self,
        labels: Sequence[int] | Tensor | None = None,
        *,
        caption_features: Tensor | None = None,
        caption_mask: Tensor | None = None,
        num_images: int | None = None,
        decoder: str | None = None,
        seed: int = 0,
        batch_size: int = 16,
        cfg_scale: float | None = None,
        cfg_interval: tuple[float, float] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        optimisation: Optimisation = "eager",
    ) -> Generated:
        """Draws pictures under class labels or caption features [B, P, F] with their mask [B, P].

        ``decoder`` is ``raster`` or ``flashar`` (default: flashar where the model has a branch); sampling settings
        default to the checkpoint's. ``optimisation``: ``eager``, ``graph`` (CUDA graphs, captured at the first batch
        and kept) or ``compile`` (compiled blocks too). Raises FlasharError for conditions or settings that don't fit.
        """
        conditions = as_conditions(labels, caption_features, caption_mask)
        names = ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")
        values = (cfg_scale, cfg_interval, temperature, top_k, top_p)
        params = self.sampling(**dict(zip(names, values, strict=True)))
        total = len(conditions) if num_images is None else num_images
        order = choose_order(self.model, decoder)
        engine = self.engine(optimisation)
        batches, images = [], []
        for codes in generate_tokens(self.model, conditions, total, order, params, seed, batch_size, engine):
            batches.append(codes)
            if self.tokenizer is not None:
                images.append(self.drawn_pictures(codes, engine))
        return Generated(torch.cat(batches), np.concatenate(images) if self.tokenizer else None)

    @torch.inference_mode()
    def logits(
        self,
        tokens: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        *,
        caption_features: Tensor | None = None,
        caption_mask: Tensor | None = None,
        decoder: str | None = None,
    ) -> Tensor:
        """Teacher-forced logits float32 [B, H, W, V] of token grids int64 [B, H, W]: raster, or fused."""
        conditions = as_conditions(labels, caption_features, caption_mask)
        self.model.prefix.check(conditions)
        if len(conditions) != len(tokens):
            raise FlasharError(f"got {len(tokens)} token grids and {len(conditions)} conditions; expected as many")
        vocab_size = self.config.backbone.vocab_size
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise FlasharError(
                f"tokens range over {int(tokens.min())}..{int(tokens.max())}; expected 0..{vocab_size - 1}"
            )
        order = choose_order(self.model, decoder)
        device = self.model.device
        prediction = self.model(order.from_raster(tokens.to(device)), conditions.to(device), order)
        return order.to_raster(prediction.logits, trailing=1)

    @torch.inference_mode()
    def pictures(self, tokens: Tensor) -> NDArray[np.uint8]:
        """Token grids int64 [B, H, W] -> uint8 [B, height, width, 3]. Raises FlasharError without a tokenizer."""
        if self.tokenizer is None:
            raise FlasharError("this checkpoint has no tokenizer, so it makes tokens only; convert it with --tokenizer")
        self.tokenizer.check_codes(tokens)
        return to_uint8(self.engine().pixels(tokens))

    @torch.inference_mode()
    def drawn_pictures(self, tokens: Tensor, engine: Engine) -> NDArray[np.uint8]:
        """As ``pictures``, for tokens that ``engine`` drew: they are in range, so nothing is checked."""
        return to_uint8(engine.pixels(tokens))


def load(
    model: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Scheme | None = None,
) -> ImageModel:
    """Loads MODEL, a checkpoint directory or a preset. ``dtype`` None: bfloat16 on CUDA, float32 on a CPU.

    ``quantize``: ``int8`` or ``fp8`` weights in blocks and heads, through torchao (`pip install flashar[quant]`).
    Raises FlasharError where it is not there or not whole, and where it can't be quantised here.
    """
    device = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if quantize is not None:
        check_scheme(quantize, device, dtype)
    loaded = checkpoint.load(hub.resolve(str(model)), device, dtype)
    if quantize is not None:
        quantize_model(loaded.model, quantize)
    return ImageModel(loaded.model, loaded.tokenizer)


def as_conditions(
    labels: Sequence[int] | Tensor | None, caption_features: Tensor | None, caption_mask: Tensor | None
) -> Conditions:
    """Labels, or caption features with their mask, as one thing. Raises FlasharError for both or neither."""
    if (labels is None) == (caption_features is None) or (caption_features is None) != (caption_mask is None):
        raise FlasharError("expected class labels, or caption features together with their mask")
    if labels is not None:
        return Conditions(labels=torch.as_tensor(labels, dtype=torch.int64).reshape(-1))
    return Conditions(features=caption_features, mask=caption_mask)
