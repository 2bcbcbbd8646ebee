"""Quality against speed of FlashAR and what it competes with, on one base: python -m benchmarks.run_bakeoff OUT

The trained ones are adaptations of the base that lie in OUT already, or are made by `flashar adapt` with one recipe and
as many steps each; the adaptation that ships with the package is there too. Every decoder draws as many samples with
the same labels and seeds, with and without guidance (`flashar eval`); its speed is that of `flashar bench`, where it
takes turns with the raster decoder of the same weights. Type the same command again after an interruption: what is done
is kept. Results: OUT/bakeoff.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import cells
from flashar_cli.checkpoints import checkpoint, hub
from flashar_cli.config import raster_only, read_config
from flashar_cli.config.recipe import AdaptRecipe, load_recipe
from flashar_cli.data.shapes import NUM_CLASSES
from flashar_cli.evaluation import spread
from flashar_cli.reporting.figures import new_figure
from flashar_cli.training.flops import training_flops

BASE, SHIPPED = "base", "shipped"


class Way(NamedTuple):
    """One way to draw: ``trained`` names the model, ``decoders`` are its settings."""

    name: str
    trained: str
    decoders: tuple[str, ...]
    colour: str


WAYS = (
    Way("raster", BASE, ("raster",), "#303030"),
    Way("FlashAR", "flashar", ("flashar",), "#2e9e73"),
    Way("FlashAR as shipped", SHIPPED, ("flashar",), "#0b5c3e"),
    Way("NAR-style", "nar", ("flashar",), "#9a78d0"),
    Way("block diffusion", "blocks", tuple(f"block-diffusion:{turns}" for turns in (1, 2, 4, 8)), "#d0603f"),
    Way("naive", BASE, ("naive",), "#8a8a8a"),
    Way("ZipAR", BASE, ("zipar:2", "zipar:4", "zipar:8"), "#3f7fd0"),
    Way("Jacobi", BASE, ("jacobi:4", "jacobi:16"), "#c0a030"),
)
# Changes to the recipe, by name of the model; all have as many steps.
CHANGES: dict[str, dict[str, Any]] = {
    "flashar": {},
    "nar": {"branch.layer": 6, "branch.gate": "mean"},
    "blocks": {"method": "block-diffusion"},
}
BATCH_SIZES = "1,8"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _make_parser()
    args = parser.parse_args(arguments)
    if args.num_images < (fewest := NUM_CLASSES * spread.FEWEST):
        parser.error(f"--num-images: got {args.num_images}, expected at least {fewest}, or distances have no errors")
    names = ("model", "shipped", "recipe", "steps", "dtype", "num_images", "seed", "guidance", "repeats")
    cells.keep_settings(args.out, {name: getattr(args, name) for name in names})
    models = {BASE: args.model, SHIPPED: args.shipped} | {name: _adapted(args, name) for name in CHANGES}
    rows = []
    for guidance in args.guidance:
        speeds = {name: _speeds(args, name, model, guidance) for name, model in models.items()}
        for way in WAYS:
            for decoder in way.decoders:
                row = {"way": way.name, "decoder": decoder, "guidance": guidance, "trained": way.trained}
                row |= _quality(args, way.trained, models[way.trained], decoder, guidance)
                rows.append(row | speeds[way.trained][decoder])
                print(json.dumps(rows[-1]), flush=True)
    costs = {name: _cost(model) for name, model in models.items()}
    document = {**cells.origin(), "settings": json.loads((args.out / "settings.json").read_text())}
    document |= {"training": costs, "rows": rows}
    (args.out / "bakeoff.json").write_text(json.dumps(document, indent=2) + "\n")
    (args.out / "bakeoff.md").write_text(table(rows, costs))
    draw(rows).savefig(args.out / "bakeoff.svg")
    print(table(rows, costs))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder of models, samples, benches, table and plot")
    parser.add_argument("--model", default="llamagen-tiny")
    parser.add_argument("--shipped", default="llamagen-tiny-flashar")
    parser.add_argument("--recipe", default="llamagen-tiny")
    parser.add_argument("--steps", type=int, default=1000, help="of each adaptation")
    parser.add_argument("--dtype", default="auto", help="of each adaptation, as of `flashar adapt`")
    parser.add_argument("--num-images", type=int, default=2000, help="samples of each row")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.1, 1.0])
    parser.add_argument("--repeats", type=int, default=10, help="measurements of each speed; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nproc", type=int, default=1, help="processes that sample")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def _adapted(args: argparse.Namespace, name: str) -> str:
    """The checkpoint of this name, made where it is not there."""
    path = args.out / name
    if path.exists():
        _refuse_other(path, args)
    command = ["adapt", args.model, "--recipe", args.recipe, "--steps", str(args.steps), "--dtype", args.dtype]
    command += [part for key, value in CHANGES[name].items() for part in ("--set", f"{key}={value}")]
    cells.make(path, [*command, "--out", str(path)], args.out / "logs", args.threads)
    return str(path)


def _refuse_other(path: Path, args: argparse.Namespace) -> None:
    """Exits where a checkpoint is not what ``_adapted`` makes of this name."""
    made = read_config(path).provenance
    base = checkpoint.weights_sha256(hub.resolve(args.model))
    wanted = load_recipe(args.recipe, [], {"steps": args.steps, **CHANGES[path.name]})
    own = AdaptRecipe.model_validate({key: value for key, value in (made.recipe or {}).items() if key != "seed"})
    kept = {"engine", "data", "save_every", "keep_states", "validate_every"}  # what may differ
    if made.source_sha256 != base or own.model_dump(exclude=kept) != wanted.model_dump(exclude=kept):
        sys.exit(f"{path} was adapted from another base or by another recipe; move it away")


def _quality(args: argparse.Namespace, trained: str, model: str, decoder: str, guidance: float) -> dict[str, Any]:
    folder = args.out / "samples" / f"{trained}-{decoder.replace(':', '-')}-{guidance:g}"
    asked = ["--decoder", decoder, "--cfg-scale", str(guidance), "--seed", str(args.seed)]
    asked += ["--num-images", str(args.num_images), "--nproc", str(args.nproc), "--batch-size", "100"]
    command = ["eval", model, *asked, "--num-validation", "64", "--out", str(folder)]
    cells.make(folder / "eval.json", command, args.out / "logs", args.threads // args.nproc)
    found = cells.figures(cells.evaluated(folder))
    return {"right": found["accuracy"], "distance": found["frechet_distance"]}


def _speeds(args: argparse.Namespace, name: str, model: str, guidance: float) -> dict[str, dict[str, Any]]:
    """For each decoder of a model: forwards, and for each batch size images a second, pixels included, and the speed-up
    over the raster decoder in the same run.
    """
    report = args.out / "benches" / f"{name}-{guidance:g}.json"
    decoders = dict.fromkeys(["raster", *(each for way in WAYS if way.trained == name for each in way.decoders)])
    if not report.exists():
        growing = report.with_suffix(".unfinished")  # a bench writes its report after every batch size
        growing.unlink(missing_ok=True)
        asked = ["--arms", ",".join(f"{decoder}-eager" for decoder in decoders), "--batch-sizes", BATCH_SIZES]
        asked += ["--cfg-scale", str(guidance), "--repeats", str(args.repeats), "--threads", str(args.threads)]
        cells.make(growing, ["bench", model, *asked, "--out", str(growing)], args.out / "logs", args.threads)
        growing.rename(report)
    found: dict[str, dict[str, Any]] = {
        decoder: {"forwards": {}, "images_per_s": {}, "speedup": {}} for decoder in decoders
    }
    for batch in json.loads(report.read_text())["batches"]:
        seconds = {
            arm["decoder"]: arm["token_generation_s"]["median_s"] + arm["token_decode_s"]["median_s"]
            for arm in batch["arms"]
        }
        for arm in batch["arms"]:
            decoder, size = arm["decoder"], str(batch["batch_size"])
            found[decoder]["forwards"][size] = arm["forwards_per_image"]
            found[decoder]["images_per_s"][size] = batch["batch_size"] / seconds[decoder]
            found[decoder]["speedup"][size] = seconds["raster"] / seconds[decoder]
    return found


def _cost(model: str) -> dict[str, Any] | None:
    """What adapting a model took, as its recipe says: optimizer steps, images and floating-point operations."""
    config = raster_only(read_config(hub.resolve(model)), "adapt")
    if config.branch is None and config.diffusion is None:
        return None
    assert config.provenance.recipe is not None
    recipe = AdaptRecipe.model_validate({k: v for k, v in config.provenance.recipe.items() if k != "seed"})
    size, stages = recipe.optim.batch_size, recipe.stages
    flops = sum(stage.steps * size * training_flops(config, stage.settings) for stage in stages)
    return {"steps": recipe.steps, "images": recipe.steps * size, "flops": flops}


def table(rows: Sequence[dict[str, Any]], costs: dict[str, dict[str, Any] | None]) -> str:
    """Markdown: a line for each decoder; speed-ups are those at the first guidance."""
    scales = list(dict.fromkeys(row["guidance"] for row in rows))
    head = ["", "forwards", *(f"{name}, {scale:g}" for scale in scales for name in ("right", "distance", "images/s"))]
    head += ["over raster", "at batch 8", "training"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 2)} --- |"]
    for way, decoder in dict.fromkeys((row["way"], row["decoder"]) for row in rows):
        chosen = {row["guidance"]: row for row in rows if (row["way"], row["decoder"]) == (way, decoder)}
        first = chosen[scales[0]]
        cost = costs[first["trained"]]
        values = [
            f"`{decoder}`" if ":" in decoder else way,
            str(first["forwards"]["1"]),
            *(value for scale in scales for value in _shown(chosen[scale])),
            f"{first['speedup']['1']:.2f}x",
            f"{first['speedup']['8']:.2f}x",
            "none" if cost is None else f"{cost['images'] / 1000:.0f} k images, {cost['flops'] / 1e12:.0f} TFLOP",
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def _shown(row: dict[str, Any]) -> tuple[str, str, str]:
    right, distance = row["right"], row["distance"]
    return (
        f"{100 * right['value']:.1f} ± {100 * right['error']:.1f} %",
        f"{distance['value']:.2f} ± {distance['error']:.2f}",
        f"{row['images_per_s']['1']:.2f}",
    )


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """Distance, with its standard error, over images a second at batch 1; one line for each way and guidance."""
    figure, axes = new_figure(7.0, 4.2)
    first = rows[0]["guidance"]
    for way in WAYS:
        for guidance in dict.fromkeys(row["guidance"] for row in rows):
            chosen = [row for row in rows if (row["way"], row["guidance"]) == (way.name, guidance)]
            chosen.sort(key=lambda row: row["images_per_s"]["1"])
            axes.errorbar(
                [row["images_per_s"]["1"] for row in chosen],
                [row["distance"]["value"] for row in chosen],
                [row["distance"]["error"] for row in chosen],
                color=way.colour,
                marker="o",
                markerfacecolor=way.colour if guidance == first else "white",
                linewidth=1,
                capsize=2,
                label=way.name if guidance == first else None,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("images a second, batch 1, pixels included")
    axes.set_ylabel("Frechet distance (lower is better)")
    others = [f"{row['guidance']:g}" for row in rows if row["guidance"] != first]
    axes.set_title(f"Filled: guidance {first:g}" + (f"; open: {others[0]}" if others else ""), fontsize=9)
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
