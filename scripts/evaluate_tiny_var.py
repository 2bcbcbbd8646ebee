"""Measures var-tiny, a small next-scale model: python -m scripts.evaluate_tiny_var --out FILE.json

Samples of each decoder under several settings of FastVAR, with the same labels and seeds: how many the shape
classifier finds right, and the Frechet distance in its features to held-out images. Results are kept as they come, with
the weights they belong to, so an interrupted evaluation goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch

import flashar_cli
from flashar_cli.api import ImageModel
from flashar_cli.checkpoints import hub
from flashar_cli.checkpoints.checkpoint import weights_sha256
from flashar_cli.config import Pruning
from flashar_cli.config.pruning_presets import pruned_layers
from flashar_cli.data.shapes import NUM_CLASSES
from flashar_cli.evaluation.judges.base import Judge
from flashar_cli.evaluation.judges.shapes import ShapesJudge
from scripts.tiny.kept_report import keep, open_report
from scripts.tiny.scale_tokenizer import evaluate_scale_tokenizer
from scripts.tiny.tokenizer_training import held_out_images

NUM_SCALES = 7
BATCH = 50


def pruned(*ratios: float, skipped: int = 0, **settings: int) -> Pruning:
    """The last scales that are decoded drop these shares of their tokens."""
    decoded = NUM_SCALES - skipped
    pairs = [(decoded - len(ratios) + place, ratio) for place, ratio in enumerate(ratios)]
    return Pruning.model_validate({"ratios": pairs, "num_scales": decoded if skipped else None, **settings})


# By name: the decoder and what it leaves out, in the presets' share of the layers unless the name says otherwise.
NUM_LAYERS = 6
SOME = pruned_layers(NUM_LAYERS)
SETTINGS: dict[str, tuple[str, Pruning | None]] = {
    "scale": ("scale", None),
    "fastvar 40 %, 50 %": ("fastvar", pruned(0.4, 0.5, **SOME)),
    "fastvar 20 %, 25 %": ("fastvar", pruned(0.2, 0.25, **SOME)),
    "fastvar 60 %, 75 %": ("fastvar", pruned(0.6, 0.75, **SOME)),
    "fastvar 50 % of the last": ("fastvar", pruned(0.5, **SOME)),
    "fastvar 40 %, 50 %, all layers": ("fastvar", pruned(0.4, 0.5)),
    "truncate 1": ("truncate", pruned(skipped=1)),
    "fastvar 40 %, 50 %, skips 1": ("fastvar", pruned(0.4, 0.5, skipped=1, **SOME)),
    "truncate 2": ("truncate", pruned(skipped=2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="quality of var-tiny under its decoders")
    parser.add_argument("--model", default="var-tiny")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tiny_var_quality.json"))
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--num-images", type=int, default=1000, help="per seed and setting")
    parser.add_argument("--cfg-scale", type=float, default=None, help="default: the model's")
    parser.add_argument("--temperature", type=float, default=None, help="default: the model's")
    parser.add_argument("--only", default=None, help="settings to measure, with semicolons between; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge, base = ShapesJudge(), flashar_cli.load(args.model)
    sampling = base.sampling(cfg_scale=args.cfg_scale, temperature=args.temperature)
    subject = {
        "weights_sha256": weights_sha256(hub.resolve(args.model)),
        "sampling": sampling.model_dump(mode="json"),
        "num_images": args.num_images,
    }
    report = open_report(args.out, subject)
    if "reconstruction" not in report:
        report["reconstruction"] = asdict(evaluate_scale_tokenizer(base.tokenizer, held_out_images(1000, False)))
    done = {(run["setting"], run["seed"]) for run in report["runs"]}
    names = list(SETTINGS) if args.only is None else args.only.split(";")
    for seed in map(int, args.seeds.split(",")):
        for name in names:
            if (name, seed) in done:
                continue
            decoder, pruning = SETTINGS[name]
            model = flashar_cli.load(args.model, fastvar=pruning)
            model.model.config = model.config.model_copy(update={"generation": sampling})
            found = measure(model, decoder, sampling.cfg_scale, seed, args.num_images, judge)
            run = {"setting": name, "pruning": pruning and pruning.model_dump(mode="json"), "seed": seed, **found}
            report["runs"].append(run)
            report["summary"] = summarise(report["runs"])
            keep(report, args.out)
            print(json.dumps(run), flush=True)
    print(json.dumps(report["summary"], indent=2))


def measure(
    model: ImageModel, decoder: str, scale: float, seed: int, num_images: int, judge: Judge
) -> dict[str, float]:
    """The figures of ``num_images`` samples at a guidance scale, classes in turn."""
    labels = [index % NUM_CLASSES for index in range(num_images)]
    images = model.generate(labels, decoder=decoder, seed=seed, batch_size=BATCH, cfg_scale=scale).images
    assert images is not None
    parts = (images[start : start + BATCH] for start in range(0, num_images, BATCH))
    return {figure.name: figure.value for figure in judge.figures(parts, model.config)}


def summarise(runs: list[dict]) -> list[dict]:
    """Means over seeds of each setting."""
    rows = []
    for name in dict.fromkeys(run["setting"] for run in runs):
        chosen = [run for run in runs if run["setting"] == name]
        means = {key: mean(run[key] for run in chosen) for key in ("accuracy", "frechet_distance")}
        rows.append({"setting": name, "seeds": len(chosen), **means})
    return rows


if __name__ == "__main__":
    main()
