"""`flashar adapt`: two-stage training of branch, gate and backbone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.recipe import AdaptRecipe

EXAMPLES = """Examples:  flashar adapt llamagen-tiny --data shapes:20000 --out adapted  |
flashar adapt --base llamagen-xl --data ./imagenet/train --probe probe.json --out llamagen-xl-flashar  |
flashar adapt llamagen-tiny --recipe llamagen-tiny --set stage2.lr=1e-3 --dry-run"""

VALIDATION_COLUMNS = ("raster", "fused", "horizontal", "vertical", "gate_mean", "gate_std")


def command(
    model: options.Model = None,
    base: options.Base = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="shapes[:N], a folder of pictures or code shards, or a `datasets` id. Default: the recipe's."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Checkpoint to write. Default: ./NAME-flashar.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A shipped recipe or a TOML file. Default: that of the preset or its family."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe; may be repeated."),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option("--probe", metavar="FILE", help="probe.json that recommends the branch layer.")
    ] = None,
    branch_layer: Annotated[
        int | None, typer.Option("--branch-layer", metavar="M", help="Default: the probe's, else L - depth.")
    ] = None,
    branch_depth: Annotated[int | None, typer.Option("--branch-depth", help="Blocks of the branch.")] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="hidden, logits, scalar or mean.")] = None,
    subset: Annotated[
        int | None, typer.Option("--subset", help="Pictures to use, class by class, chosen by the seed.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps of both stages together.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pictures an optimizer step.")] = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Adapt a raster model to parallel decoding, in two stages.

    Stage 1 trains branch and gate, stage 2 everything. Type the same command again to resume an interrupted run.
    """
    name = options.required_model(model, base)
    flags = {
        "branch.layer": branch_layer,
        "branch.depth": branch_depth,
        "branch.gate": gate,
        "data.subset": subset,
        "steps": steps,
        "optim.batch_size": batch_size,
    }
    overrides = [*(set_ or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    settings = _recipe(name, recipe, overrides)
    source = data or settings.data.source
    if source is None:
        raise FlasharError(
            "no --data was passed and the recipe names none; expected a folder, a `datasets` id or shapes:N"
        )

    from flashar_cli import adaptation, checkpoint, hub, runtime
    from flashar_cli.data.prepare import prepare_codes
    from flashar_cli.probing import read_recommendation

    runtime.set_threads(threads)
    where = options.resolve_device(device)
    directory = hub.resolve(name)
    import torch

    loaded = checkpoint.load(directory, where, torch.float32)
    job = adaptation.AdaptJob(
        loaded=loaded,
        base_name=name,
        base_sha256=checkpoint.weights_sha256(directory),
        recipe=settings,
        recommended_layer=None if probe is None else read_recommendation(probe, loaded.config),
        out=out or Path(f"{Path(name).name}-flashar"),
        seed=seed,
        dtype=options.resolve_dtype(dtype, where),
        stored_dtype=checkpoint.stored_dtype(directory),
    )
    adaptation.check_job(job, overwrite)
    if dry_run:
        output.document(adaptation.describe(job, None) | {"data": source})
        return
    output.set_resume_command(["flashar", *(part for part in sys.argv[1:] if part != "--overwrite")])
    output.note(f"reading {source}; what is not yet encoded is encoded into {hub.cache_dir() / 'codes'}")
    with output.progress(settings.data.subset or 0, "images") as bar:
        codes = prepare_codes(loaded, source, settings.data.subset, seed, bar.update)
    output.note(f"{len(codes)} pictures; branch before block {job.branch.layer} of {loaded.config.backbone.num_layers}")
    last, validations = _run(job, codes, overwrite)
    if json:
        output.document({"out": str(job.out), "validation": last})
        return
    rows = [
        [f"{v['stage']} {v['step']}", *(f"{v[key]:.4f}" if key in v else "-" for key in VALIDATION_COLUMNS)]
        for v in validations
    ]
    output.table("validation, nats per token", ["after", *VALIDATION_COLUMNS], rows)
    output.result(f"wrote {job.out}: fused loss {last['fused']:.4f}, raster base {validations[0]['raster']:.4f}")


def _recipe(name: str, recipe: str | None, overrides: list[str]) -> AdaptRecipe:
    """The named recipe, else the one of the preset, else that of its family."""
    from flashar_cli.recipe import AdaptRecipe, load_recipe, shipped_recipes

    if recipe is None:
        family = f"{name.split('-')[0]}-80k"
        recipe = name if name in shipped_recipes() else family if family in shipped_recipes() else None
    return load_recipe(recipe, overrides, AdaptRecipe)


def _run(job: Any, codes: Any, overwrite: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from flashar_cli import adaptation

    validations: list[dict[str, Any]] = []
    done = {"step": -1}
    with output.progress(job.recipe.steps, "steps") as bar:

        def report(kind: str, record: dict[str, Any]) -> None:
            if kind == "validation":
                validations.append(record)
                losses = ", ".join(f"{key} {record[key]:.4f}" for key in VALIDATION_COLUMNS if key in record)
                output.note(f"{record['stage']} step {record['step']}: {losses}")
            else:
                bar.update(record["step"] - done["step"])
                done["step"] = record["step"]

        last = adaptation.adapt(job, codes, overwrite, report, output.note)
    return last, validations or [last]
