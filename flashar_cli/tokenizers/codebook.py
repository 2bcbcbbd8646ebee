"""What tokenizers with a codebook share: an encoder, a search for the vector that fits a latent, and a decoder.

Letters: B images, h x w pixels, H x W tokens (h = H * downsample), K codebook size, Z codebook dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.config import IBQConfig, VQConfig
from flashar_cli.tokenizers.base import ImageTokenizer
from flashar_cli.tokenizers.layers import Decoder, Encoder, Levels

SEARCH_SCORES = 2**25  # of latents with codebook vectors at a time: 128 MiB in float32


@dataclass(frozen=True)
class TrainingOutput:
    """What a training forward returns."""

    reconstruction: Tensor  # float [B, 3, h, w], not clamped
    codebook_loss: Tensor  # scalar: moves codebook vectors towards latents
    commitment_loss: Tensor  # scalar: moves latents towards codebook vectors
    tokens: Tensor  # int64 [B, H, W]
    latent: Tensor  # float [B, Z, H, W], unit length along Z


class CodebookTokenizer(ImageTokenizer):
    """Convolutional encoder, codebook, convolutional decoder. ``unit`` codebooks are normalised before use."""

    def __init__(self, config: VQConfig | IBQConfig, encoder: Levels, decoder: Levels, unit: bool) -> None:
        super().__init__()
        self.config: VQConfig | IBQConfig = config
        self.encoder = Encoder(encoder, config.latent_channels)
        self.decoder = Decoder(decoder, config.latent_channels)
        self.quantize = Quantizer(config.codebook_size, config.codebook_dim, unit)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)

    def latent(self, images: Tensor) -> Tensor:
        """float [B, 3, h, w] in [-1, 1] -> float [B, Z, H, W], of any length.

        Raises FlasharError for an image whose sides are not multiples of ``config.downsample``.
        """
        self.check_images(images)
        return self.quant_conv(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            latent = self.latent(images)
        return self.quantize.search(latent.float())  # the search stays in float32

    def decode_unchecked(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quantize.lookup(tokens)))

    def forward(self, images: Tensor, strength: float | Tensor = 1.0) -> TrainingOutput:
        """Training forward with straight-through gradients, for codebook vectors of length 1: of these the one with the
        largest dot product is the nearest. float [B, 3, h, w] in [-1, 1].

        ``strength`` in 0 .. 1 moves the decoder's input from the latent (0) to its codebook vector (1).
        """
        latent = F.normalize(self.latent(images).float(), dim=1)
        tokens = self.quantize.search(latent.detach())
        quantized = self.quantize.lookup(tokens)
        codebook_loss = F.mse_loss(quantized, latent.detach())
        commitment_loss = F.mse_loss(latent, quantized.detach())
        passed = latent + strength * (quantized - latent).detach()
        reconstruction = self.decoder(self.post_quant_conv(passed))
        return TrainingOutput(reconstruction, codebook_loss, commitment_loss, tokens, latent)


class Quantizer(nn.Module):
    """The codebook vector with the largest dot product with a latent; its index is the token."""

    def __init__(self, size: int, dim: int, unit: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.unit = unit

    def codebook(self) -> Tensor:
        """float [K, Z]: the vectors as search and decoding use them."""
        return F.normalize(self.embedding.weight, dim=-1) if self.unit else self.embedding.weight

    def search(self, latent: Tensor) -> Tensor:
        """[B, Z, H, W] -> int64 [B, H, W]. The length of a latent makes no difference."""
        return best_rows(latent, self.codebook().float())

    def lookup(self, tokens: Tensor) -> Tensor:
        """int64 [B, H, W] -> the codebook's vectors [B, Z, H, W]."""
        return F.embedding(tokens, self.codebook()).permute(0, 3, 1, 2)


def best_rows(latent: Tensor, codebook: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The row of float32 [K, Z] with the largest dot product with a latent [B, Z, H, W], each product plus the row's
    own of ``offsets`` [K]; the first of equal ones. int64 [B, H, W].
    """
    batch, dim, height, width = latent.shape
    rows = latent.permute(0, 2, 3, 1).reshape(-1, dim).float()
    at_once = max(1, SEARCH_SCORES // len(codebook))
    found = []
    for chunk in rows.split(at_once):
        scores = chunk @ codebook.t()
        found.append((scores if offsets is None else scores + offsets).argmax(dim=-1))
    return torch.cat(found).reshape(batch, height, width)
