"""`flashar adapt`: two-stage training of branch, gate and backbone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.adaptation import AdaptJob
    from flashar_cli.data.codes import CodeSet
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

    Stage 1 trains branch and gate, stage 2 everything. Type the same command again to resume an interrupted run. The
    checkpoint holds report.html: curves, gate map, samples of both decoders, settings.
    """
    name = options.required_model(model, base)
    flags = {
        "branch.layer": branch_layer,
        "branch.depth": branch_depth,
        "branch.gate": gate,
        "data.source": None if data is None else f'"{data}"',
        "data.subset": subset,
        "steps": steps,
        "optim.batch_size": batch_size,
    }
    overrides = [*(set_ or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
    from flashar_cli import adaptation, checkpoint, hub, runtime
    from flashar_cli.data.prepare import plan_codes
    from flashar_cli.probing import read_probe, read_recommendation

    directory = hub.resolve(name)
    settings = _recipe(name, checkpoint.read_config(directory).family, recipe, overrides)
    source = settings.data.source
    if source is None:
        raise FlasharError(
            "no --data was passed and the recipe names none; expected a folder, a `datasets` id or shapes:N"
        )
    runtime.set_threads(threads)
    where = options.resolve_device(device)
    precision = options.resolve_dtype(dtype, where)
    import torch

    if precision is torch.float16:
        raise FlasharError("--dtype float16 is too narrow for gradients; train in bfloat16 or float32")
    loaded, sha256 = checkpoint.load(directory, where, torch.float32), checkpoint.weights_sha256(directory)
    recommended, probed = None, None
    if probe is not None:
        recommended = read_recommendation(probe, loaded.config, sha256, settings.branch.depth)
        probed = read_probe(probe)
    job = adaptation.AdaptJob(
        loaded=loaded,
        base_name=Path(name).name,
        base_sha256=sha256,
        recipe=settings,
        recommended_layer=recommended,
        out=out or Path(f"{Path(name).name}-flashar"),
        seed=seed,
        dtype=precision,
        stored_dtype=checkpoint.stored_dtype(directory),
        probe=probed,
    )
    adaptation.check_job(job, overwrite)
    plan = plan_codes(loaded, source, settings.data.subset, seed)
    if dry_run:
        output.document(adaptation.describe(job, plan.num_images))
        return
    output.set_resume_command(["flashar", *sys.argv[1:]])
    output.note(f"reading {source}; what is not yet encoded is encoded into {hub.cache_dir() / 'codes'}")
    with output.progress(plan.num_images, "images") as bar:
        codes = plan.codes(bar.update)
    output.note(f"{len(codes)} pictures; branch before block {job.branch.layer} of {loaded.config.backbone.num_layers}")
    validations = _run(job, codes, overwrite)
    last, report = validations[-1], job.out / adaptation.REPORT_FILE
    if json:
        output.document({"out": str(job.out), "report": str(report), "validation": last})
        return
    rows = [
        [f"{v['stage']} {v['step']}", *(f"{v[key]:.4f}" if key in v else "-" for key in VALIDATION_COLUMNS)]
        for v in validations
    ]
    output.table("validation, nats per token", ["after", *VALIDATION_COLUMNS], rows)
    output.result(f"wrote {job.out}: fused loss {last['fused']:.4f}, raster base {validations[0]['raster']:.4f}")
    output.note(f"the report is {report}")


def _recipe(name: str, family: str, recipe: str | None, overrides: list[str]) -> AdaptRecipe:
    """The named recipe, else the one of this preset, else that of the model's family, else the defaults."""
    from flashar_cli.recipe import AdaptRecipe, load_recipe, shipped_recipes

    if recipe is None:
        recipe = next((known for known in (name, f"{family}-80k") if known in shipped_recipes()), None)
    return load_recipe(recipe, overrides, AdaptRecipe)


def _run(job: AdaptJob, codes: CodeSet, overwrite: bool) -> list[dict[str, Any]]:
    from flashar_cli import adaptation

    def tell(kind: str, record: dict[str, Any]) -> None:
        if kind == "validation":
            losses = ", ".join(f"{key} {record[key]:.4f}" for key in VALIDATION_COLUMNS if key in record)
            output.note(f"{record['stage']} step {record['step']}: {losses}")

    console = output.terminal()
    if console is None:
        return adaptation.adapt(job, codes, overwrite, tell, output.note)
    from flashar_cli.reporting.live import LiveView

    with LiveView(console) as view:

        def show(kind: str, record: dict[str, Any]) -> None:
            tell(kind, record)
            view(kind, record)

        return adaptation.adapt(job, codes, overwrite, show, output.note)
