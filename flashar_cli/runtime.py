"""Process-wide settings."""

from __future__ import annotations


def set_threads(threads: int | None) -> None:
    """Uses this many CPU threads in PyTorch; None keeps its default."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
