"""The time of all linear layers of one forward, by rows, on plain and on prepacked weights: python
benchmarks/linear_rate.py [--model llamagen-b] [--out FILE]

Random weights in float32 and in bfloat16. Each layer runs once a forward, so that none finds its weights in a cache.
The two kinds of weights alternate A B A B. Runs on a CPU, as `--optimisation packed` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from flashar_cli.benchmarking.subject import ensure_branch, random_model
from flashar_cli.decoding.forwards import MIN_PACKED_ROWS, packed_linears
from flashar_cli.families import PRESETS
from flashar_cli.files.writing import atomic_file
from flashar_cli.machine.environment import hardware, software

ROWS = (2, 4, 8, 16, 24, 32)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="time of a forward's linear layers, on plain and prepacked weights")
    parser.add_argument("--model", default="llamagen-b", choices=sorted(PRESETS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the report here too")
    args = parser.parse_args()
    cpu = torch.device("cpu")
    report = {
        "model": args.model,
        "num_threads": torch.get_num_threads(),
        "hardware": hardware(cpu).model_dump(),
        "software": software().model_dump(),
        "forward_s": {},
    }
    for dtype in (torch.float32, torch.bfloat16):
        model = random_model(PRESETS[args.model].config(), cpu, dtype, 0)
        ensure_branch(model, 0)
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        packed = packed_linears(model)
        for rows in ROWS:
            inputs = {layer.in_features: torch.randn(rows, layer.in_features, dtype=dtype) for layer in layers}

            def forward(layers: list[nn.Linear] = layers, inputs: dict[int, torch.Tensor] = inputs) -> None:
                for layer in layers:
                    layer(inputs[layer.in_features])

            times: dict[str, list[float]] = {"plain": [], "packed": []}
            for _ in range(args.repeats):
                times["plain"].append(seconds(forward))
                if rows >= MIN_PACKED_ROWS[dtype]:
                    with packed.active():
                        times["packed"].append(seconds(forward))
            medians = {kind: statistics.median(raw) for kind, raw in times.items() if raw}
            report["forward_s"][f"{str(dtype).removeprefix('torch.')}, {rows} rows"] = medians
            line = ", ".join(f"{kind} {1000 * value:.1f} ms" for kind, value in medians.items())
            print(f"{dtype}, {rows} rows: {line}", file=sys.stderr)
    text = json.dumps(report, indent=2) + "\n"
    if args.out is not None:
        with atomic_file(args.out) as file:
            file.write(text.encode())
    print(text, end="")


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
