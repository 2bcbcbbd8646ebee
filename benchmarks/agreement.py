"""How many tokens an optimisation draws as eager decoding does, and a sheet of its pictures: python
benchmarks/agreement.py llamagen-tiny-flashar --optimisations graph,compile --out FILE --sheet FILE.png

The same seed, labels and settings, guidance and sampling included. The sheet holds the first optimisation's pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import flashar_cli
from flashar_cli.benchmarking.environment import hardware, software
from flashar_cli.data.pictures import contact_sheet, write_png
from flashar_cli.files import atomic_file


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens that an optimisation draws as eager decoding does")
    parser.add_argument("model")
    parser.add_argument("--optimisations", default="graph")
    parser.add_argument("--num-images", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--out", type=Path, required=True, help="JSON; written again after every optimisation")
    parser.add_argument("--sheet", type=Path, help="PNG")
    args = parser.parse_args()
    model = flashar_cli.load(args.model, args.device, getattr(torch, args.dtype))
    settings: dict[str, Any] = {
        "labels": [k % 10 for k in range(args.num_images)],
        "batch_size": args.batch_size,
    }
    eager = model.generate(**settings)
    device = torch.device(args.device)
    document: dict[str, Any] = {
        "model": args.model,
        "dtype": args.dtype,
        "hardware": hardware(device).model_dump(),
        "software": software().model_dump(),
        "num_tokens": eager.tokens.numel(),
        "optimisations": {},
    }
    for index, name in enumerate(args.optimisations.split(",")):
        fallbacks: list[str] = []
        model.engine(name, explain=fallbacks.append)
        drawn = model.generate(**settings, optimisation=name)
        equal = int((drawn.tokens == eager.tokens).sum())
        found = {"num_equal_tokens": equal, "fell_back": fallbacks[0] if fallbacks else None}
        document["optimisations"][name] = found
        print(json.dumps({name: found}), file=sys.stderr, flush=True)
        with atomic_file(args.out) as file:
            file.write((json.dumps(document, indent=2) + "\n").encode())
        if index == 0 and args.sheet is not None and drawn.images is not None:
            write_png(args.sheet, contact_sheet(drawn.images), {"model": args.model, "optimisation": name})
    # A decoder that fell back was not compared with anything.
    sys.exit(any(found["fell_back"] for found in document["optimisations"].values()))


if __name__ == "__main__":
    main()
