"""How close encoding a folder of images comes to the tokenizer alone: python benchmarks/encode_rate.py [--out FILE]

Two arms alternate A B A B in one process: the tokenizer on decoded and cropped images in memory, and the engine of
`flashar encode` on the same images as files, shards and checksums included. The images are drawn shapes, saved as PNG.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.data.encoding import encode
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_encoding
from flashar_cli.data.shapes import CLASS_NAMES, draw
from flashar_cli.machine.environment import hardware, software
from flashar_cli.machine.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="encode rate of files against the tokenizer's own")
    parser.add_argument("--model", default="llamagen-tiny")
    parser.add_argument("--num-images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64, help="pixels of the images on disk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the report here too")
    args = parser.parse_args()

    loaded = checkpoint.load(hub.resolve(args.model), torch.device("cpu"), torch.float32)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        for index in range(args.num_images):
            name = folder / CLASS_NAMES[index % 10]
            name.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(0, index, size=args.side)).save(name / f"{index:05d}.png")
        job = plan_encoding(loaded, str(folder), None, 0, EncodeOptions())
        images = np.stack([job.encoder.prepare((folder / name).read_bytes()) for name in job.source.ids.tolist()])
        job.encoder.tokens(images[: 4 * job.batch_size])  # warm-up, of the other arm as well
        seconds: dict[str, list[float]] = {"tokenizer": [], "encode": []}
        for repeat in range(args.repeats):
            started = time.perf_counter()
            job.encoder.tokens(images)
            seconds["tokenizer"].append(time.perf_counter() - started)
            started = time.perf_counter()
            encode(job, Path(work) / f"tokens-{repeat}", World())
            seconds["encode"].append(time.perf_counter() - started)
    rate = {arm: args.num_images / statistics.median(values) for arm, values in seconds.items()}
    report = {
        "model": args.model,
        "num_images": args.num_images,
        "picture_side": args.side,
        "batch_size": job.batch_size,
        "workers": job.workers,
        "torch_threads": torch.get_num_threads(),
        "hardware": hardware(torch.device("cpu")).model_dump(),
        "software": software().model_dump(),
        "tokenizer_s": seconds["tokenizer"],
        "encode_s": seconds["encode"],
        "tokenizer_images_per_s": rate["tokenizer"],
        "encode_images_per_s": rate["encode"],
        "share": rate["encode"] / rate["tokenizer"],
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
