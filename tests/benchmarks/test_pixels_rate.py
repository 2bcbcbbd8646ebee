"""Tokens to pixels in several ways: each is timed as often as asked, and one that is wrong is seen to be."""

from __future__ import annotations

import torch

from benchmarks.pixels_rate import measured, ways_of
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.tiny_models import TINY_VQ


def test_ways_are_timed_and_compared() -> None:
    torch.manual_seed(0)
    tokenizer, tokens = VQTokenizer(TINY_VQ).eval(), torch.randint(32, (2, 3, 5))
    ways = ways_of(tokenizer, torch.device("cpu"))
    assert {"trained", "float32"} <= set(ways)
    ways["black"] = (torch.float32, lambda tokens: torch.full((2, 3, 12, 20), -1.0))
    with torch.inference_mode():
        found = measured(ways, tokens, repeats=3)
    assert set(found) == set(ways)
    assert all(len(way["raw_s"]) == len(way["raw_cpu_s"]) == 3 and way["median_s"] > 0 for way in found.values())
    assert found["trained"]["agreement"]["num_differing_pixels"] == 0
    assert found["float32"]["agreement"]["max_difference"] <= 1
    assert found["black"]["agreement"]["num_differing_pixels"] > 0.9 * found["black"]["agreement"]["num_pixels"]
