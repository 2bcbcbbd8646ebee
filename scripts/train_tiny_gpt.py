"""Trains the raster base of llamagen-tiny: python -m scripts.train_tiny_gpt TOKENIZER_DIR OUT

TOKENIZER_DIR is what train_tiny_tokenizer.py wrote. Run it again after an interruption to resume. OUT becomes a
checkpoint in half precision; OUT.run holds metrics and training state meanwhile. About an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from flashar_cli import __version__
from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.config import (
    BackboneConfig,
    ClassPrefix,
    GridConfig,
    ModelConfig,
    Provenance,
    Sampling,
)
from flashar_cli.config.recipe import EngineSettings, OptimSettings, Stage, StageSettings
from flashar_cli.data.prepare import plan_tokens
from flashar_cli.data.shapes import CLASS_NAMES
from flashar_cli.data.tokens import split_validation
from flashar_cli.models.flashar import FlasharModel, initialise
from flashar_cli.training.loop import TrainingRun, run_stages
from flashar_cli.training.metrics import MetricsFile
from flashar_cli.training.state import TrainingState
from scripts.tiny.tokenizer_training import load_trained_tokenizer

BACKBONE = BackboneConfig(dim=128, num_layers=6, num_heads=4, num_kv_heads=4, ffn_dim=384, vocab_size=64)
# Where both decoders draw well: chosen on another seed than those that the model card reports.
GENERATION = Sampling(cfg_scale=1.1, temperature=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description="train the raster base of llamagen-tiny on drawn shapes")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_DIR")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=3600, help="at a high learning rate, the first half of a cosine")
    parser.add_argument("--anneal-steps", type=int, default=1800, help="from half of it down to zero")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--num-images", type=int, default=40_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks; needs a C++ compiler")
    args = parser.parse_args()

    tokenizer = load_trained_tokenizer(args.tokenizer)

    directory = args.out.with_name(args.out.name + ".run")
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "steps": args.steps,
        "anneal_steps": args.anneal_steps,
        "lr": args.lr,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "num_images": args.num_images,
    }
    recipe = {**settings, "script": "scripts/train_tiny_gpt.py"}
    config = ModelConfig(
        family="llamagen",
        backbone=BACKBONE,
        prefix=ClassPrefix(num_classes=len(CLASS_NAMES)),
        grid=GridConfig(height=16, width=16),
        tokenizer=tokenizer.config,
        generation=GENERATION,
        class_names=CLASS_NAMES,
        provenance=Provenance(tool_version=__version__, recipe=recipe),
    )
    model = FlasharModel(config)
    initialise(model, args.seed)
    plan = plan_tokens(Loaded(model, tokenizer), f"shapes:{args.num_images + 512}", None, args.seed)
    data = plan.tokens(lambda count: None)
    train, validation = split_validation(data, 512)
    stages = [
        Stage("raster", args.steps, StageSettings(lr=args.lr, warmup_steps=100, cosine_steps=2 * args.steps)),
        Stage("anneal", args.anneal_steps, StageSettings(lr=args.lr / 2, warmup_steps=20)),
    ]
    state = TrainingState(directory, settings)
    metrics = MetricsFile(directory / "metrics.jsonl", state.total_steps(stages), echo=sys.stderr)
    run_stages(
        TrainingRun(
            model=model,
            train=train,
            validation=validation,
            stages=stages,
            optim=OptimSettings(batch_size=args.batch_size),
            engine=EngineSettings(compile=args.compile),
            seed=args.seed,
            dtype=torch.bfloat16,
            state=state,
            save_every=200,
            validate_every=500,
            report=metrics,
            stage_done=lambda name: None,
        )
    )
    provenance = config.provenance.model_copy(update={"data_fingerprint": train.fingerprint()})
    raster_loss = round(metrics.validations[-1]["raster"], 5)
    final = config.model_copy(update={"raster_loss": raster_loss, "provenance": provenance})
    tokenizer_state = {name: tensor.half() for name, tensor in tokenizer.state_dict().items()}
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    checkpoint.save(args.out, final, weights, tokenizer_state, overwrite=True)


if __name__ == "__main__":
    main()
