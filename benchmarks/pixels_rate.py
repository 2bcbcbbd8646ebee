"""The time of turning tokens into pixels, and the difference from float32: python benchmarks/pixels_rate.py
[--model llamagen-b] [--batch-sizes 1,8] [--device cpu] [--out FILE]

Random weights. These alternate A B A B: the tokenizer as it is trained (float32, eager); as `generate` and `bench` run
it with a model in float32; on a CPU the latter also without Winograd convolutions, and in bfloat16 where it can;
on CUDA as with a model in bfloat16, eager and compiled. Wall time stands beside CPU time, which on one thread is the
better clock of a machine that is not idle. Agreement is with the first of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from flashar_cli.benchmarking.agreement import pixel_agreement
from flashar_cli.benchmarking.subject import random_tokenizer
from flashar_cli.decoding.pixels import PixelDecoder
from flashar_cli.families import PRESETS
from flashar_cli.files.writing import atomic_file
from flashar_cli.machine import process
from flashar_cli.machine.environment import hardware, software, variables
from flashar_cli.tokenizers import inference
from flashar_cli.tokenizers.inference import InferenceDecoder, has_winograd
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.vq import VQTokenizer

Way = tuple[torch.dtype, Callable[[Tensor], Tensor]]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="time of tokens to pixels, and agreement with float32")
    parser.add_argument("--model", default="llamagen-b", choices=sorted(PRESETS))
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: as many as PyTorch takes")
    parser.add_argument("--out", type=Path, help="write the report here too")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    process.keep_freed_memory()  # as the commands do
    device, config = torch.device(args.device), PRESETS[args.model].config()
    assert config.tokenizer is not None
    tokenizer = random_tokenizer(config.tokenizer, device, 0)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": args.model,
        "num_threads": torch.get_num_threads(),
        "variables": variables(),
        "hardware": hardware(device).model_dump(),
        "software": software().model_dump(),
        "batches": {},
    }
    ways = ways_of(tokenizer, device)
    for batch in map(int, args.batch_sizes.split(",")):
        shape = (batch, config.order_grid.height, config.order_grid.width)
        generator = torch.Generator().manual_seed(batch)
        tokens = torch.randint(config.tokenizer.codebook_size, shape, generator=generator).to(device)
        found = measured(ways, tokens, args.repeats)
        report["batches"][str(batch)] = found
        for name, numbers in found.items():
            print(f"batch {batch}, {name}: {numbers}", file=sys.stderr)
    text = json.dumps(report, indent=2) + "\n"
    if args.out is not None:
        with atomic_file(args.out) as file:
            file.write(text.encode())
    print(text, end="")


def ways_of(tokenizer: VQTokenizer, device: torch.device) -> dict[str, Way]:
    float32 = PixelDecoder(tokenizer)
    ways: dict[str, Way] = {
        "trained": (torch.float32, tokenizer.decode_unchecked),
        "float32": (torch.float32, float32),
    }
    if device.type == "cuda":
        bfloat16 = PixelDecoder(tokenizer, torch.bfloat16)
        ways["bfloat16"] = (torch.bfloat16, bfloat16)
        ways["bfloat16, compiled"] = (torch.bfloat16, bfloat16.compiled)
        return ways
    if has_winograd():

        def direct(tokens: Tensor) -> Tensor:
            with mock.patch.object(inference, "WINOGRAD_CAPABILITY", "none"):
                return float32(tokens)

        ways["float32, direct convolutions"] = (torch.float32, direct)
    if hardware(device).cpu_features:
        decoder = InferenceDecoder(tokenizer, torch.bfloat16)
        ways["bfloat16"] = (torch.bfloat16, lambda tokens: torch.cat([decoder(part) for part in tokens.split(1)]))
    return ways


def measured(ways: dict[str, Way], tokens: Tensor, repeats: int) -> dict[str, dict[str, Any]]:
    """Wall and CPU seconds of each way for the whole batch, and how close its images are to the first way's."""
    images = {name: to_uint8(way(tokens)) for name, (_, way) in ways.items()}  # a warm-up too
    wall_s: dict[str, list[float]] = {name: [] for name in ways}
    cpu_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (_, way) in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way(tokens)
            if tokens.is_cuda:
                torch.cuda.synchronize()
            wall_s[name].append(time.perf_counter() - wall)
            cpu_s[name].append(time.process_time() - cpu)
    expected = next(iter(images.values()))
    return {
        name: {
            "median_s": statistics.median(wall_s[name]),
            "raw_s": wall_s[name],
            "median_cpu_s": statistics.median(cpu_s[name]),
            "raw_cpu_s": cpu_s[name],
            "agreement": pixel_agreement(dtype, images[name], expected).model_dump(),
        }
        for name, (dtype, _) in ways.items()
    }


if __name__ == "__main__":
    main()
