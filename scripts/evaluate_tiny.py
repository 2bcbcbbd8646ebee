"""Measures the embedded models: python -m scripts.evaluate_tiny --out benchmarks/results/tiny_quality.json

Raster samples of the base against FlashAR samples of its adaptation, with the same labels, sampling settings and seeds:
how many the shape classifier finds right, and the Frechet distance in its features to 5000 held-out images. Once at
the default guidance, once without any. Results are kept as they come, with the weights they belong to, so an
interrupted evaluation goes on. --metrics takes the validation losses of the adaptation along. About 15 minutes on two
CPU cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import flashar_cli
from flashar_cli.checkpoints import hub
from flashar_cli.checkpoints.checkpoint import weights_sha256
from flashar_cli.evaluation.judges.shapes import NUM_HELD_OUT, ShapesJudge
from scripts.tiny.kept_report import keep, open_report
from scripts.tiny.measuring import measure
from scripts.tiny.tokenizer_training import evaluate_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="quality of llamagen-tiny and llamagen-tiny-flashar")
    parser.add_argument("--base", default="llamagen-tiny")
    parser.add_argument("--adapted", default="llamagen-tiny-flashar")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_quality.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=1000, help="per seed, decoder and guidance")
    parser.add_argument("--metrics", type=Path, default=None, help="metrics.jsonl of the adaptation")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    judge = ShapesJudge()
    models = {"raster": flashar_cli.load(args.base), "flashar": flashar_cli.load(args.adapted)}
    default = models["raster"].config.generation.cfg_scale
    subject = {
        "weights_sha256": {
            name: weights_sha256(hub.resolve(model))
            for name, model in (("raster", args.base), ("flashar", args.adapted))
        },
        "generation": models["raster"].config.generation.model_dump(),
        "num_images": args.num_images,
        "num_held_out": NUM_HELD_OUT,
    }
    report = open_report(args.out, subject)
    if args.metrics is not None:
        records = [json.loads(line) for line in args.metrics.read_text().splitlines()]
        report["validation"] = [record for record in records if record["kind"] == "validation"]
    if "reconstruction" not in report:
        tokenizer = models["raster"].tokenizer
        assert tokenizer is not None
        report["reconstruction"] = asdict(evaluate_tokenizer(tokenizer))
    done = {(run["decoder"], run["cfg_scale"], run["seed"]) for run in report["runs"]}
    for seed in range(args.seeds):
        for scale in sorted({default, 1.0}, reverse=True):
            for decoder, model in models.items():
                if (decoder, scale, seed) in done:
                    continue
                run = {"decoder": decoder, "cfg_scale": scale, "seed": seed}
                run |= measure(model, decoder, scale, seed, args.num_images, judge)
                report["runs"].append(run)
                keep(report, args.out)
                print(json.dumps(run), flush=True)
    report["summary"] = summarise(report["runs"])
    keep(report, args.out)
    print(json.dumps(report["summary"], indent=2))


def summarise(runs: list[dict]) -> list[dict[str, float]]:
    """Means over seeds for each guidance, and FlashAR against raster."""
    rows = []
    for scale in sorted({run["cfg_scale"] for run in runs}):
        row: dict[str, float] = {"cfg_scale": scale}
        for decoder in ("raster", "flashar"):
            chosen = [run for run in runs if run["decoder"] == decoder and run["cfg_scale"] == scale]
            for key in ("accuracy", "frechet_distance"):
                row[f"{decoder}_{key}"] = float(np.mean([run[key] for run in chosen]))
        row["accuracy_points_lost"] = 100 * (row["raster_accuracy"] - row["flashar_accuracy"])
        row["frechet_ratio"] = row["flashar_frechet_distance"] / row["raster_frechet_distance"]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
