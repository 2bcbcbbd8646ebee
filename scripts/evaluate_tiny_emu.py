"""Measures the embedded text-to-image models: python -m scripts.evaluate_tiny_emu --out FILE.json

Images of held-out scenes whose prompts name shape and both colours, in four lengths; prompts, seeds and settings are
the same for every model. The judge says in how many the shape, each colour, and all three are right. More adaptations,
such as one with LoRA, are named by --also. Results are kept as they come, with the weights they belong to, so an
interrupted evaluation goes on, and further models can be added.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import flashar_cli
from flashar_cli.api import ImageModel
from flashar_cli.checkpoints import hub
from flashar_cli.checkpoints.checkpoint import weights_sha256
from flashar_cli.evaluation.judges.scenes import judge, scenes
from flashar_cli.evaluation.shape_classifier import ShapeClassifier, load_classifier
from scripts.tiny.kept_report import keep, open_report
from scripts.tiny.tokenizer_training import evaluate_tokenizer

BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="quality of emu-tiny and emu-tiny-flashar")
    parser.add_argument("--base", default="emu-tiny")
    parser.add_argument("--adapted", default="emu-tiny-flashar")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=MODEL", help="another adaptation")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_emu_quality.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=500, help="per seed and model")
    parser.add_argument("--cfg-scale", type=float, default=None, help="default: the model's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = {"raster": args.base, "flashar": args.adapted, **dict(each.split("=", 1) for each in args.also)}
    models = {name: flashar_cli.load(model) for name, model in names.items()}
    weights = {name: weights_sha256(hub.resolve(model)) for name, model in names.items()}
    subject = {
        "sampling": models["raster"].sampling(cfg_scale=args.cfg_scale).model_dump(mode="json"),
        "num_images": args.num_images,
    }
    report = open_report(args.out, subject)
    if "reconstruction" not in report:
        tokenizer = models["raster"].tokenizer
        assert tokenizer is not None
        report["reconstruction"] = asdict(evaluate_tokenizer(tokenizer, captioned=True))
    classifier = load_classifier()
    report["runs"] = [run for run in report["runs"] if run["weights_sha256"] == weights.get(run["model"])]
    done = {(run["model"], run["seed"]) for run in report["runs"]}
    for seed in range(args.seeds):
        for name, model in models.items():
            if (name, seed) in done:
                continue
            run = {"model": name, "weights_sha256": weights[name], "seed": seed}
            run |= measure(model, name, seed, args, classifier)
            report["runs"].append(run)
            keep(report, args.out)
            print(json.dumps(run), flush=True)
    report["summary"] = [mean_of(name, report["runs"]) for name in models]
    keep(report, args.out)
    print(json.dumps(report["summary"], indent=2))


def measure(
    model: ImageModel, name: str, seed: int, args: argparse.Namespace, classifier: ShapeClassifier
) -> dict[str, float]:
    """Shares of images with the right shape, colours, and all of them."""
    wanted, prompts = scenes(args.num_images)
    decoder = "raster" if name == "raster" else "flashar"
    made = model.generate(prompts=prompts, decoder=decoder, seed=seed, batch_size=BATCH, cfg_scale=args.cfg_scale)
    assert made.images is not None
    return asdict(judge(classifier, made.images, wanted))


def mean_of(name: str, runs: list[dict]) -> dict[str, float | str]:
    """Means over seeds of one model."""
    chosen = [run for run in runs if run["model"] == name]
    return {"model": name} | {
        part: float(np.mean([run[part] for run in chosen])) for part in ("shape", "ink", "ground", "all")
    }


if __name__ == "__main__":
    main()
