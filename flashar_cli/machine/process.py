"""Process-wide settings."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Has the process reuse memory that it freed rather than give it back, where the C library is glibc."""
    # glibc returns tensors beyond 32 MiB to the system at once: on a CPU every map of a 256x256 image with 128 channels
    # would be new memory, whose first touch takes longer than most operations on it.
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
