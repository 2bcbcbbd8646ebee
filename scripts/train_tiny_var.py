"""Trains the transformer of var-tiny: python -m scripts.train_tiny_var TOKENIZER_DIR OUT

TOKENIZER_DIR is what train_tiny_tokenizer.py --scales wrote. Run it again after an interruption to resume. OUT becomes
a checkpoint in half precision; OUT.run holds tokens and training state meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from flashar_cli import __version__
from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import (
    ClassPrefix,
    GridConfig,
    NextScaleConfig,
    Provenance,
    Sampling,
    ScaleTransformerConfig,
    SchedulesConfig,
)
from flashar_cli.config.pruning_presets import last_two
from flashar_cli.data.shapes import CLASS_NAMES
from flashar_cli.models.next_scale.model import NextScaleModel
from scripts.tiny.scale_tokenizer import SCALES
from scripts.tiny.scale_training import ScaleModelTraining, encode_shapes, train_scale_model
from scripts.tiny.tokenizer_training import load_trained_tokenizer

TRANSFORMER = ScaleTransformerConfig(
    dim=96, num_layers=6, num_heads=4, ffn_dim=384, shared_modulation=True, num_levels=len(SCALES)
)
# Where the model draws well: chosen on another seed than those that the model card reports.
GENERATION = Sampling(cfg_schedule="linear", cfg_scale=2.0, top_p=0.9)


def main() -> None:
    defaults = ScaleModelTraining()
    parser = argparse.ArgumentParser(description="train the transformer of var-tiny on drawn shapes")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--num-images", type=int, default=defaults.num_images)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer = load_trained_tokenizer(args.tokenizer)
    settings = ScaleModelTraining(num_images=args.num_images, steps=args.steps, lr=args.lr, seed=args.seed)
    config = NextScaleConfig(
        family="var",
        transformer=TRANSFORMER,
        prefix=ClassPrefix(num_classes=len(CLASS_NAMES)),
        grid=GridConfig(height=SCALES[-1].height, width=SCALES[-1].width),
        schedules=SchedulesConfig(
            longest=(tuple((scale.height, scale.width) for scale in SCALES),), lengths=(len(SCALES),)
        ),
        tokenizer=tokenizer.config,
        fastvar=last_two(TRANSFORMER.num_layers, len(SCALES)),
        generation=GENERATION,
        class_names=CLASS_NAMES,
        provenance=Provenance(tool_version=__version__),
    )
    model = NextScaleModel(config)
    model.initialise(args.seed)
    directory = args.out.with_name(args.out.name + ".run")
    directory.mkdir(parents=True, exist_ok=True)
    count = settings.num_images + settings.num_validation
    tokens = encode_shapes(tokenizer, config, count, directory / "tokens.pt")
    losses = train_scale_model(
        model, tokenizer, tokens, settings, directory / "state.pt", lambda line: print(line, flush=True), args.compile
    )
    recipe = {**asdict(settings), "validation": losses, "script": "scripts/train_tiny_var.py"}
    fingerprint = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    provenance = config.provenance.model_copy(update={"recipe": recipe, "data_fingerprint": fingerprint})
    final = config.model_copy(update={"provenance": provenance})
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    tokenizer_state = {name: tensor.half() for name, tensor in tokenizer.state_dict().items()}
    checkpoint.save(args.out, final, weights, tokenizer_state, overwrite=True)


if __name__ == "__main__":
    main()
