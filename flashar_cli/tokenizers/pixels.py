"""Images as people store them (uint8, channels last) and as tokenizers take them (float, channels first)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashar_cli.errors import FlasharError


def from_uint8(images: np.ndarray) -> Tensor:
    """uint8 [B, h, w, 3] -> float32 [B, 3, h, w] in [-1, 1]. Raises FlasharError for another dtype or shape."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise FlasharError(f"images are {images.dtype} {images.shape}; expected uint8 [B, height, width, 3]")
    channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return channels_first.to(torch.float32).div(127.5).sub(1.0).contiguous()


def to_uint8(images: Tensor) -> np.ndarray:
    """float [B, 3, h, w] -> uint8 [B, h, w, 3]; clamps to [-1, 1] and rounds."""
    scaled = images.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def resized(images: Tensor, side: int) -> Tensor:
    """float [B, 3, h, w] -> [B, 3, side, side], bicubic without anti-aliasing, as LlamaGen's published figures have it
    (FoundationVision/LlamaGen autoregressive/sample/sample_c2i_ddp.py).
    """
    return F.interpolate(images, size=(side, side), mode="bicubic")


def psnr_db(images: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels over all pixels of two float [B, 3, h, w]; clamps the first to [-1, 1]."""
    error = (images.float().clamp(-1.0, 1.0) - reference.float()).double().square().mean().item()
    return float("inf") if error == 0 else float(10 * np.log10(4.0 / error))
