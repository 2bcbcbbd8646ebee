"""Trains the shape classifier: python -m scripts.train_tiny_classifier TOKENIZER_DIR OUT

TOKENIZER_DIR is what train_tiny_tokenizer.py wrote. Writes OUT/classifier.safetensors (float16) and
OUT/classifier.json with the settings and the held-out accuracies of the rounded weights. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from flashar_cli.evaluation.shape_classifier import ShapeClassifier
from scripts.tiny.classifier_training import ClassifierTraining, evaluate_classifier, train_classifier
from scripts.tiny.tokenizer_training import load_trained_tokenizer


def main() -> None:
    defaults = ClassifierTraining()
    parser = argparse.ArgumentParser(description="train the shape classifier")
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER_DIR")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write to")
    parser.add_argument("--num-images", type=int, default=defaults.num_images)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = replace(defaults, num_images=args.num_images, steps=args.steps, seed=args.seed)

    tokenizer = load_trained_tokenizer(args.tokenizer)
    started = time.monotonic()
    trained = train_classifier(tokenizer, settings, log=lambda line: print(line, flush=True))
    training_s = time.monotonic() - started

    state = {name: tensor.half().contiguous() for name, tensor in trained.state_dict().items()}
    rounded = ShapeClassifier().eval()
    rounded.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    report = {
        "training": asdict(settings),
        "training_s": round(training_s, 1),
        "num_parameters": sum(tensor.numel() for tensor in state.values()),
        "held_out": asdict(evaluate_classifier(rounded, tokenizer)),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(state, args.out / "classifier.safetensors")
    (args.out / "classifier.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
