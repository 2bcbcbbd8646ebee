"""`flashar adapt`: two-stage training of branch, gate and backbone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli import bounds
from flashar_cli.cli import options, output
from flashar_cli.cli.launch import launch
from flashar_cli.errors import FlasharError
from flashar_cli.world import current_world

if TYPE_CHECKING:
    from flashar_cli.adaptation.job import AdaptJob
    from flashar_cli.config import ModelConfig
    from flashar_cli.data.codes import CodeSet
    from flashar_cli.data.prepare import EncodeOptions
    from flashar_cli.recipe import AdaptRecipe, DataSettings

EXAMPLES = """Examples:  flashar adapt llamagen-tiny --data shapes:20000 --out adapted  |
flashar adapt --base llamagen-xl --data ./imagenet/train --probe probe.json --out llamagen-xl-flashar  |
flashar adapt llamagen-tiny --recipe llamagen-tiny --set stage2.lr=1e-3 --dry-run"""

VALIDATION_COLUMNS = ("raster", "fused", "horizontal", "vertical", "gate_mean", "gate_std")


def command(
    model: options.Model = None,
    base: options.Base = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help=f"{options.DATA_HELP}, or a folder of code shards. Default: the recipe's."),
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
        int | None,
        options.number("--branch-layer", bounds.LAYER, metavar="M", help="Default: the probe's, else L - depth."),
    ] = None,
    branch_depth: Annotated[
        int | None, options.number("--branch-depth", bounds.LAYERS, help="Blocks of the branch.")
    ] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="hidden, logits, scalar or mean.")] = None,
    subset: Annotated[
        int | None,
        options.number("--subset", bounds.IMAGES, help="Pictures to use, class by class, chosen by the seed."),
    ] = None,
    steps: Annotated[
        int | None, options.number("--steps", bounds.STAGED_STEPS, help="Optimizer steps of both stages together.")
    ] = None,
    batch_size: Annotated[
        int | None, options.number("--batch-size", bounds.BATCH, help="Pictures an optimizer step.")
    ] = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    nproc: options.Nproc = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Adapt a raster model to parallel decoding, in two stages.

    Stage 1 trains branch and gate, stage 2 everything. Type the same command again to resume an interrupted run. The
    checkpoint holds report.html: curves, gate map, samples of both decoders, settings.
    """
    name = options.required_model(model, base)
    if not dry_run:
        launch(nproc)
    flags = {
        "branch.layer": branch_layer,
        "branch.depth": branch_depth,
        "branch.gate": gate,
        "data.source": data,
        "data.subset": subset,
        "steps": steps,
        "optim.batch_size": batch_size,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    from flashar_cli import checkpoint, hub, runtime
    from flashar_cli.adaptation.artifacts import REPORT_FILE, RUN
    from flashar_cli.adaptation.job import AdaptJob, check_job, run_dir
    from flashar_cli.config import read_config
    from flashar_cli.data.prepare import plan_codes
    from flashar_cli.families import PRESETS
    from flashar_cli.outputs import Output, check_outputs
    from flashar_cli.probing import read_probe, read_recommendation

    if dry_run and hub.local_path(name) is None and name in PRESETS:
        settings = _recipe(name, PRESETS[name].family, recipe, set_, given)
        output.note(f"{name} is not on this machine: its shape is the preset's, and --data is not opened")
        output.document(_plan(PRESETS[name].config(), settings, None, nproc, device, dtype))
        return
    directory = hub.resolve(name)
    settings = _recipe(name, read_config(directory).family, recipe, set_, given)
    source = settings.data.source
    if source is None:
        raise FlasharError("no --data was passed and the recipe names none; expected " + options.DATA_HELP)
    out = out or Path(f"{Path(name).name}-flashar")
    check_outputs(
        [Output("--out", out, checkpoint.CHECKPOINT), Output("the run's folder", run_dir(out), RUN, goes_on=True)],
        {"MODEL": directory, "--data": source, "--recipe": recipe, "--probe": probe},
        overwrite,
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
    job = AdaptJob(
        loaded=loaded,
        base_name=Path(name).name,
        base_sha256=sha256,
        recipe=settings,
        recommended_layer=recommended,
        out=out,
        seed=seed,
        dtype=precision,
        stored_dtype=checkpoint.stored_dtype(directory),
        probe=probed,
    )
    check_job(job)
    plan = plan_codes(loaded, source, settings.data.subset, seed, _encode_options(settings.data))
    if dry_run:
        document = _plan(loaded.config, settings, recommended, nproc, device, dtype)
        output.document(document | {"num_images": plan.num_images, "out": str(job.out)})
        return
    output.set_resume_command(["flashar", *sys.argv[1:]])
    options.note_slow(precision, where)
    output.note(plan.note)
    with output.progress(plan.num_images, "images") as bar:
        codes = plan.codes(bar.update)
    output.note(f"{len(codes)} pictures; branch before block {job.branch.layer} of {loaded.config.backbone.num_layers}")
    validations = _run(job, codes, overwrite)
    if not current_world().is_main:
        return
    last, report = validations[-1], job.out / REPORT_FILE
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


def _plan(
    base: ModelConfig,
    settings: AdaptRecipe,
    recommended: int | None,
    nproc: int | None,
    device: str,
    dtype: options.Dtype,
) -> dict[str, Any]:
    """What ``--dry-run`` prints. Where there is no GPU to ask, the plan is for bfloat16 on an assumed one."""
    import torch

    from flashar_cli.adaptation.job import choose_branch
    from flashar_cli.adaptation.plan import describe

    where = options.resolve_device(device)
    assumed = where.type != "cuda" and dtype is options.Dtype.auto
    precision = torch.bfloat16 if assumed else options.resolve_dtype(dtype, where)
    branch = choose_branch(settings.branch, recommended, base.backbone)
    return describe(base, branch, settings, nproc or current_world().size, where, precision)


def _recipe(
    name: str, family: str, recipe: str | None, overrides: list[str] | None, values: dict[str, Any]
) -> AdaptRecipe:
    """The named recipe, else that of this preset, else that of the model's family, else the defaults."""
    from flashar_cli.recipe import AdaptRecipe, load_recipe, shipped_recipes

    if recipe is None:
        recipe = next((known for known in (name, f"{name}-80k", f"{family}-80k") if known in shipped_recipes()), None)
    return load_recipe(recipe, overrides or [], AdaptRecipe, values)


def _encode_options(data: DataSettings) -> EncodeOptions:
    from flashar_cli.data.augment import Augmentation
    from flashar_cli.data.encode_job import MaxBad
    from flashar_cli.data.prepare import EncodeOptions
    from flashar_cli.data.sources.base import Columns

    return EncodeOptions(
        columns=Columns(data.split, data.image_column, data.label_column, data.caption_column),
        augmentation=Augmentation(data.augment, data.crop_ratio),
        max_bad=MaxBad(data.max_bad),
    )


def _run(job: AdaptJob, codes: CodeSet, overwrite: bool) -> list[dict[str, Any]]:
    from flashar_cli.adaptation.run import adapt

    def tell(kind: str, record: dict[str, Any]) -> None:
        if kind == "validation":
            losses = ", ".join(f"{key} {record[key]:.4f}" for key in VALIDATION_COLUMNS if key in record)
            output.note(f"{record['stage']} step {record['step']}: {losses}")

    console = output.terminal()
    if console is None:
        return adapt(job, codes, overwrite, tell, output.note)
    from flashar_cli.reporting.live import LiveView

    with LiveView(console) as view:

        def show(kind: str, record: dict[str, Any]) -> None:
            tell(kind, record)
            view(kind, record)

        return adapt(job, codes, overwrite, show, output.note)
