"""Trains a raster base further: python -m scripts.train_tiny_base BASE DATA OUT

BASE is a checkpoint of any family, for instance the random one that make_tiny_emu.py writes; DATA is token shards, or
shapes:N, which a model that reads text gets with captions. Run it again after an interruption to resume. OUT becomes a
checkpoint in half precision; OUT.run holds metrics and training state meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flashar_cli.checkpoints import checkpoint
from scripts.tiny.raster_training import RasterTraining, train_base


def main() -> None:
    defaults = RasterTraining(data="")
    parser = argparse.ArgumentParser(description="train a raster base")
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="at a high learning rate, half of a cosine")
    parser.add_argument("--anneal-steps", type=int, default=defaults.anneal_steps, help="from half of it down to zero")
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--num-validation", type=int, default=defaults.num_validation)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--float32", action="store_true", help="no autocast, which is slow on processors without bfloat16 instructions"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks; needs a C++ compiler")
    args = parser.parse_args()
    settings = RasterTraining(
        data=args.data,
        steps=args.steps,
        anneal_steps=args.anneal_steps,
        lr=args.lr,
        batch_size=args.batch_size,
        num_validation=args.num_validation,
        seed=args.seed,
        bfloat16=not args.float32,
    )
    loaded = checkpoint.load(args.base, torch.device(args.device), torch.float32)
    text_files = {path.name: path for path in args.base.glob("text_tokenizer*")}
    train_base(loaded, settings, args.out, args.compile, text_files)


if __name__ == "__main__":
    main()
