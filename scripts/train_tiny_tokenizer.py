"""Trains the image tokenizer of llamagen-tiny, with --captioned that of emu-tiny before it is widened, or with
--scales that of var-tiny: python -m scripts.train_tiny_tokenizer OUT

Writes OUT/tokenizer.safetensors (float16) and OUT/tokenizer.json: the config, the settings, and the quality of the
rounded weights on held-out images; OUT/unmerged.safetensors is the tokenizer before close codes were merged.
About fifteen minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flashar_cli.data.shapes import TRAINING_SEED
from scripts.tiny.codebook import merge_codes
from scripts.tiny.scale_tokenizer import SCALE_CONFIG
from scripts.tiny.tokenizer_training import (
    TINY_CONFIG,
    TokenizerTraining,
    drawn,
    float32_tokenizer,
    half,
    save_trained_tokenizer,
    train_tokenizer,
)


def main() -> None:
    defaults = TokenizerTraining()
    parser = argparse.ArgumentParser(description="train the image tokenizer of llamagen-tiny on drawn shapes")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write to")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--merged-codes", type=int, default=defaults.merged_codes, help="size of the final codebook")
    parser.add_argument(
        "--float32", action="store_true", help="no autocast, which is slow on processors without bfloat16 instructions"
    )
    parser.add_argument("--captioned", action="store_true", help="train on images in the named colours of captions")
    parser.add_argument("--scales", action="store_true", help="train a tokenizer of several scales, never merged")
    parser.add_argument("--from-unmerged", type=Path, help="unmerged.safetensors of an earlier run: only merge")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = replace(
        defaults, steps=args.steps, batch_size=args.batch_size, lr=args.lr, seed=args.seed,
        merged_codes=args.merged_codes, captioned=args.captioned, bfloat16=not args.float32,
    )  # fmt: skip

    if args.from_unmerged:
        trained = float32_tokenizer(TINY_CONFIG, load_file(args.from_unmerged))
        # How it was trained stands beside the file, if anywhere.
        chosen = {name: getattr(settings, name) for name in ("merged_codes", "merging_images", "captioned")}
        facts = {"training": {"unmerged": args.from_unmerged.name} | chosen}
    else:
        started, config = time.monotonic(), SCALE_CONFIG if args.scales else TINY_CONFIG
        trained = train_tokenizer(config, settings, log=lambda line: print(line, flush=True))
        facts = {"training": asdict(settings), "training_s": round(time.monotonic() - started, 1)}
    if args.scales:
        print(json.dumps(save_trained_tokenizer(args.out, trained, facts)))
        return
    unmerged = half(trained)
    images = drawn(TRAINING_SEED, 0, settings.merging_images, settings.captioned)
    merged = merge_codes(float32_tokenizer(TINY_CONFIG, unmerged), images, settings.merged_codes)
    written = save_trained_tokenizer(args.out, merged, facts, captioned=settings.captioned)
    save_file(unmerged, args.out / "unmerged.safetensors")
    print(json.dumps(written))


if __name__ == "__main__":
    main()
