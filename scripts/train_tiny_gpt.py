"""Trains the raster base of llamagen-tiny: python -m scripts.train_tiny_gpt TOKENIZER_DIR OUT

TOKENIZER_DIR is what train_tiny_tokenizer.py wrote. Run it again after an interruption to resume. OUT becomes a
checkpoint in half precision; OUT.run holds metrics and training state meanwhile. About an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flashar_cli import __version__
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.config import (
    BackboneConfig,
    ClassPrefix,
    GridConfig,
    Provenance,
    RasterConfig,
    Sampling,
)
from flashar_cli.data.shapes import CLASS_NAMES
from scripts.tiny.raster_training import RasterTraining, new_model, train_base
from scripts.tiny.tokenizer_training import load_trained_tokenizer

BACKBONE = BackboneConfig(dim=128, num_layers=6, num_heads=4, num_kv_heads=4, ffn_dim=384, vocab_size=64)
# Where both decoders draw well: chosen on another seed than those that the model card reports.
GENERATION = Sampling(cfg_scale=1.1, temperature=0.9)


def main() -> None:
    defaults = RasterTraining(data="")
    parser = argparse.ArgumentParser(description="train the raster base of llamagen-tiny on drawn shapes")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="at a high learning rate, half of a cosine")
    parser.add_argument("--anneal-steps", type=int, default=defaults.anneal_steps, help="from half of it down to zero")
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--num-images", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks; needs a C++ compiler")
    args = parser.parse_args()

    tokenizer = load_trained_tokenizer(args.tokenizer)
    settings = RasterTraining(
        data=f"shapes:{args.num_images + defaults.num_validation}",
        steps=args.steps,
        anneal_steps=args.anneal_steps,
        lr=args.lr,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    config = RasterConfig(
        family="llamagen",
        backbone=BACKBONE,
        prefix=ClassPrefix(num_classes=len(CLASS_NAMES)),
        grid=GridConfig(height=16, width=16),
        tokenizer=tokenizer.config,
        generation=GENERATION,
        class_names=CLASS_NAMES,
        provenance=Provenance(tool_version=__version__),
    )
    train_base(Loaded(new_model(config, args.seed), tokenizer), settings, args.out, args.compile)


if __name__ == "__main__":
    main()
