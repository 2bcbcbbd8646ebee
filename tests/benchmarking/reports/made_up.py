"""Made-up reports: every duration is chosen, nothing is measured."""

from __future__ import annotations

from typing import Any

FLOOR_OF_A_FORWARD_S = 0.05


def seconds(value: float) -> dict[str, Any]:
    return {"median_s": value, "p25_s": value, "p75_s": value, "raw_s": [value]}


def arm(forwards: int, tokens_s: float) -> dict[str, Any]:
    floor_s = forwards * FLOOR_OF_A_FORWARD_S
    return {
        "forwards_per_image": forwards,
        "token_generation_s": seconds(tokens_s),
        "prefix_s": seconds(0.01),
        "decode_s": seconds(tokens_s - 0.01),
        "token_decode_s": seconds(0.1),
        "images_per_s": 1 / tokens_s,
        "warmup_s": [tokens_s],
        "peak_memory_bytes": None,
        "read_bytes_per_s": 1e9,
        "share_of_copy": 0.1,
        "floor_s": floor_s,
        "times_floor": tokens_s / floor_s,
    }


def report(raster_s: float = 4.0, flashar_s: float = 1.0, batch_sizes: tuple[int, ...] = (1,)) -> dict[str, Any]:
    batches = [
        {
            "batch_size": size,
            "speedup": raster_s / flashar_s,
            "speedup_with_token_decode": None,
            "raster": arm(16, raster_s),
            "flashar": arm(7, flashar_s),
        }
        for size in batch_sizes
    ]
    return {
        "report_version": 1,
        "date": "2026-01-01T00:00:00+00:00",
        "hardware": {"cpu": "a processor", "num_cpu_cores": 2, "gpu": None},
        "software": {"flashar": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "cuda": None, "commit": None},
        "model": {
            "name": "tiny",
            "family": "llamagen",
            "weights": "random weights",
            "grid": "4x4",
            "num_parameters": 1000,
            "branch": "layer 1, depth 1, gate hidden",
            "branch_added": True,
        },
        "settings": {
            "device": "cpu",
            "dtype": "float32",
            "num_threads": 2,
            "optimisation": "eager",
            "batch_sizes": list(batch_sizes),
            "repeats": 1,
            "warmup": 1,
            "cfg_scale": 2.0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "seed": 0,
        },
        "rates": {"copy_bytes_per_s": 1e10, "matmul_flops_per_s": 1e11},
        "peak_rss_bytes": 1000000,
        "batches": batches,
    }
