"""The choices of the method, one at a time, on a small model: python -m benchmarks.run_ablation OUT

A cell is a row of the table and a seed: `flashar adapt` with the row's changes to a recipe, then `flashar eval` of the
result, each a process of its own. Type the same command again after an interruption: cells that are done are kept, and
a begun one goes on. Rows of one seed share images, their order, labels and random numbers. OUT/ablation.json and
OUT/ablation.md have the figures of every cell, and their means and standard deviations over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import cells

BASE, DEFAULT = "base", "default"
# Changes to the recipe, by row. The last two, "one stage" and "default" build the method up as the paper's table does.
ROWS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "layer 4": ("branch.layer=4",),
    "layer 6 (last)": ("branch.layer=6",),
    "gate logits": ("branch.gate=logits",),
    "gate scalar": ("branch.gate=scalar",),
    "gate mean": ("branch.gate=mean",),
    "one stage": ("stage1_fraction=0",),
    "depth 2": ("branch.depth=2", "branch.layer=4"),
    "vertical weight 0": ("stage1.vertical_weight=0", "stage2.vertical_weight=0"),
    "no distillation": ("stage1.distill_weight=0",),
    "layer 6, mean, one stage": ("branch.layer=6", "branch.gate=mean", "stage1_fraction=0"),
    "mean, one stage": ("branch.gate=mean", "stage1_fraction=0"),
}
VALIDATION = 64  # images with which an adaptation watches itself; the losses of the table are those of `flashar eval`
# Name, factor, format.
COLUMNS = (("loss", 1, ".4f"), ("loss_over_default", 1, "+.4f"), ("right", 100, ".1f"), ("distance", 1, ".2f"))


def main(arguments: Sequence[str] | None = None) -> None:
    args = _make_parser().parse_args(arguments)
    names = args.rows or list(ROWS)
    settings = {
        name: getattr(args, name)
        for name in ("model", "recipe", "steps", "batch_size", "dtype", "compile", "num_train", "num_images")
    }
    cells.keep_settings(args.out, settings)
    data = ["--data", f"shapes:{args.num_train}", "--out", str(args.out / "tokens")]
    cells.make(args.out / "tokens" / "manifest.json", ["encode", args.model, *data], args.out, args.threads)
    wanted = [(row, seed) for seed in range(args.seeds) for row in [BASE, *names]]
    with ThreadPoolExecutor(args.jobs) as pool:
        for row, seed in pool.map(lambda cell: _make_cell(args, *cell), wanted):
            print(f"{row}, seed {seed}: {_figures(_folder(args.out, row, seed))}", flush=True)
    document = _document(args, names)
    (args.out / "ablation.json").write_text(json.dumps(document, indent=2) + "\n")
    (args.out / "ablation.md").write_text(table(document["rows"]))
    print(table(document["rows"]))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder of all cells and of the table")
    parser.add_argument("--model", default="llamagen-tiny")
    parser.add_argument("--recipe", default="llamagen-tiny")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of an adaptation")
    parser.add_argument("--batch-size", type=int, default=16, help="of an optimizer step")
    parser.add_argument("--dtype", default="auto", help="of an adaptation, as of `flashar adapt`")
    parser.add_argument("--num-train", type=int, default=10512, help="images")
    parser.add_argument("--num-images", type=int, default=500, help="samples of a cell")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: faster steps after a minute's wait")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, which share the threads")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def _folder(out: Path, row: str, seed: int) -> Path:
    return out / f"{row.replace(',', '').replace(' ', '-')}-{seed}"


def _make_cell(args: argparse.Namespace, row: str, seed: int) -> tuple[str, int]:
    folder = _folder(args.out, row, seed)
    cells.keep_settings(folder, {"seed": seed, "changes": list(ROWS.get(row, ()))})
    model, threads = args.model, args.threads // args.jobs
    if row != BASE:
        model = str(folder / "adapted")
        changes = [*ROWS[row], f"data.num_validation={VALIDATION}"]
        changes += ["engine.compile=true"] if args.compile else []
        asked = ["--data", str(args.out / "tokens"), "--seed", str(seed), "--dtype", args.dtype]
        asked += ["--steps", str(args.steps), "--batch-size", str(args.batch_size)]
        asked += [part for change in changes for part in ("--set", change)]
        command = ["adapt", args.model, "--recipe", args.recipe, *asked, "--out", model]
        cells.make(Path(model), command, folder, threads)
    asked = ["--num-images", str(args.num_images), "--seed", str(seed), "--batch-size", "100"]
    command = ["eval", model, *asked, "--out", str(folder / "eval")]
    cells.make(folder / "eval" / "eval.json", command, folder, threads)
    return row, seed


def _figures(folder: Path) -> dict[str, float]:
    """What was measured of a cell: nats per token of each head, and the judge's figures of its samples. ``loss`` is of
    what samples are drawn from: the fused prediction, or of the base its only one.
    """
    arm = cells.evaluated(folder / "eval")
    nats = {each["head"]: each["total"] for each in arm["code_lengths"]}
    judged = cells.figures(arm)
    found = {"right": judged["accuracy"]["value"], "distance": judged["frechet_distance"]["value"]}
    return {"loss": nats.get("fused", nats.get("raster")), **nats, **found}


def _document(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    cells_of = {row: [_figures(_folder(args.out, row, seed)) for seed in range(args.seeds)] for row in [BASE, *names]}
    losses = {row: [each["loss"] for each in found] for row, found in cells_of.items()}
    rows = []
    for row, found in cells_of.items():
        over_seeds = {key: _spread([each[key] for each in found]) for key in found[0]}
        if DEFAULT in losses and row not in (BASE, DEFAULT):  # seed by seed, as those share all that is random
            pairs = zip(losses[row], losses[DEFAULT], strict=True)
            over_seeds["loss_over_default"] = _spread([loss - default for loss, default in pairs])
        rows.append({"row": row, "changes": list(ROWS.get(row, ())), "cells": found, "over_seeds": over_seeds})
    return {
        **cells.origin(),
        "settings": json.loads((args.out / "settings.json").read_text()),
        "seeds": args.seeds,
        "rows": rows,
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: each row's mean over seeds ± standard deviation; the losses of the base are its raster ones."""
    lines = ["| | validation loss | over default | right | distance |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        shown = [_shown(row["over_seeds"].get(name), factor, form) for name, factor, form in COLUMNS]
        lines.append(f"| {row['row']} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _shown(value: dict[str, float | None] | None, factor: float, form: str) -> str:
    if value is None:
        return ""
    mean, deviation = value["mean"], value["deviation"]
    assert mean is not None
    spread = "" if deviation is None else f" ± {factor * deviation:{form.lstrip('+')}}"
    return f"{factor * mean:{form}}{spread}{' %' if factor == 100 else ''}"


if __name__ == "__main__":
    main()
