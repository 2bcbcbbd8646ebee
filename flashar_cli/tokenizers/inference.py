"""The tokenizer's decoder for inference: the same weights and results, but other layouts and algorithms.

Letters: B images, H and W tokens, h and w pixels, K codebook size, F feature channels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashar_cli.tokenizers.codebook import CodebookTokenizer
from flashar_cli.tokenizers.layers import Upsample
from flashar_cli.tokenizers.next_scale import ScaleTokenizer

# Winograd's algorithm first transforms weights and maps, so it pays only from so many input channels and positions on.
# Measured on two EPYC cores with AVX2 (benchmarks/pixels_rate.py). With AVX-512 oneDNN is faster: NNPACK has none.
MIN_CHANNELS, MIN_POSITIONS = 128, 1024
WINOGRAD_CAPABILITY = "AVX2"


class InferenceDecoder(nn.Module):
    """Tokens int64 [B, H, W], not checked -> [B, 3, h, w] of its dtype, about [-1, 1] and not clamped.

    Takes no gradients. On a CPU it shares the tokenizer's weights where they have this ``dtype``, so the tokenizer must
    not be moved or cast meanwhile; elsewhere it holds a copy in channels-last layout.
    """

    latents_KF: Tensor

    def __init__(self, tokenizer: CodebookTokenizer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight = tokenizer.post_quant_conv.weight.detach()
        self.decoder = _inference_copy(tokenizer.decoder, dtype)
        # What a token becomes before the first 3x3 convolution depends on the token alone: [K, F].
        bias = tokenizer.post_quant_conv.bias
        bias = None if bias is None else bias.float()
        latents_KF = F.linear(tokenizer.quantize.codebook().float(), weight[:, :, 0, 0].float(), bias)
        self.register_buffer("latents_KF", latents_KF.detach().to(dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        # The permuted view is a map in channels-last layout, and what follows keeps to the layout that it gets.
        return self.decoder(F.embedding(tokens, self.latents_KF).permute(0, 3, 1, 2))


class LatentDecoder(nn.Module):
    """Latents [B, Z, H, W] of its dtype -> [B, 3, h, w], as ``InferenceDecoder``, for tokenizers of several scales."""

    def __init__(self, tokenizer: ScaleTokenizer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.post_quant_conv = _inference_copy(tokenizer.post_quant_conv, dtype)
        self.decoder = _inference_copy(tokenizer.decoder, dtype)

    def forward(self, latent: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent))


class CpuConvolution(nn.Module):
    """A 3x3 convolution of stride 1 by the faster of two algorithms: oneDNN's direct one and NNPACK's Winograd one,
    whose rounding errors are a few times as large.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, features: Tensor) -> Tensor:
        if _winograd_pays(features):
            return torch._nnpack_spatial_convolution(features, self.weight, self.bias, 1)
        return F.conv2d(features, self.weight, self.bias, padding=1)


def has_winograd() -> bool:
    """Whether some convolutions are Winograd's on this machine's CPU."""
    known = torch.backends.cpu.get_cpu_capability() == WINOGRAD_CAPABILITY
    return known and hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()


def _winograd_pays(features: Tensor) -> bool:
    """The batch matters too: NNPACK has a fast path for one image only."""
    batch, channels, height, width = features.shape
    fits = batch == 1 and channels >= MIN_CHANNELS and height * width >= MIN_POSITIONS
    return fits and features.dtype == torch.float32 and has_winograd()


def _inference_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module for inference. On a CPU it shares tensors that have this dtype."""
    weights = list(module.parameters())
    on_cpu = all(weight.device.type == "cpu" for weight in weights)
    shared = on_cpu and all(weight.dtype == dtype for weight in weights)
    # Its modules are copied, to be replaced one by one, and its tensors too unless they are shared.
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in weights} if shared else None)
    if not shared:
        copied.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _replace(copied, on_cpu)
    return copied


def _replace(module: nn.Module, on_cpu: bool) -> None:
    for name, child in module.named_children():
        if isinstance(child, Upsample):
            # Unlike the Upsample that training uses, this keeps the layout.
            module.add_module(name, nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), child.conv))
            _replace(module.get_submodule(name), on_cpu)
        elif on_cpu and isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
            module.add_module(name, CpuConvolution(child))
        else:
            _replace(child, on_cpu)
