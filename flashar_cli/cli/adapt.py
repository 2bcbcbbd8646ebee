"""`flashar adapt`: two-stage training of branch, gate and backbone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.cli.launch import launch
from flashar_cli.data.options import DATA_HELP, EncodeOptions
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.machine.world import current_world

if TYPE_CHECKING:
    import torch

    from flashar_cli.adaptation.job import AdaptJob
    from flashar_cli.config import RasterConfig
    from flashar_cli.config.recipe import AdaptRecipe
    from flashar_cli.data.tokens import TokenSet

EXAMPLES = """Examples:  flashar adapt llamagen-tiny --data shapes:20000 --out adapted  |
flashar adapt --base llamagen-xl --data ./imagenet/train --probe probe.json --out llamagen-xl-flashar  |
flashar adapt llamagen-tiny --recipe llamagen-tiny --set stage2.lr=1e-3 --dry-run"""

Data = Annotated[str | None, typer.Option(help=f"{DATA_HELP}, or a folder of token shards. Default: the recipe's.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Checkpoint to write. Default: ./NAME-flashar.")]
Recipe = Annotated[str | None, typer.Option(help="A shipped recipe or a TOML file. Default: the preset's or family's.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated.")
]
Probe = Annotated[Path | None, typer.Option(metavar="FILE", help="probe.json that recommends the branch layer.")]


@dataclass(frozen=True)
class RecipeOptions:
    """Values of a recipe that have an option of their own; None keeps the recipe's."""

    method: Annotated[
        str | None, typer.Option(help="flashar; block-diffusion: blocks of a row, unknown tokens a few at a time.")
    ] = None
    branch_layer: Annotated[
        int | None, options.number(bounds.LAYER, metavar="M", help="Default: the probe's, else L - depth.")
    ] = None
    branch_depth: Annotated[int | None, options.number(bounds.LAYERS, help="Blocks of the branch.")] = None
    gate: Annotated[str | None, typer.Option(help="hidden, logits, scalar or mean.")] = None
    subset: options.Subset = None
    steps: Annotated[
        int | None, options.number(bounds.STAGED_STEPS, help="Optimizer steps of both stages together.")
    ] = None
    batch_size: Annotated[int | None, options.number(bounds.BATCH, help="Images an optimizer step.")] = None

    def values(self, data: str | None) -> dict[str, Any]:
        """What was passed, by key of the recipe."""
        keys = {
            "method": self.method,
            "branch.layer": self.branch_layer,
            "branch.depth": self.branch_depth,
            "branch.gate": self.gate,
            "data.source": data,
            "data.subset": self.subset,
            "steps": self.steps,
            "optim.batch_size": self.batch_size,
        }
        return {key: value for key, value in keys.items() if value is not None}


@options.flattened
def command(
    *,
    model: options.Model = None,
    base: options.Base = None,
    data: Data = None,
    out: Out = None,
    recipe: Recipe = None,
    set_: Set = None,
    probe: Probe = None,
    changes: RecipeOptions,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    machine: options.Machine,
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
    from flashar_cli.adaptation.artifacts import outputs
    from flashar_cli.adaptation.job import choose_recipe, load_job
    from flashar_cli.checkpoints import hub
    from flashar_cli.config import raster_only, read_config
    from flashar_cli.data.prepare import plan_tokens
    from flashar_cli.families import PRESETS
    from flashar_cli.files.outputs import check_outputs

    if dry_run and hub.local_path(name) is None and name in PRESETS:
        shape = raster_only(PRESETS[name].config(), "adapt")
        settings = choose_recipe(name, shape, recipe, set_, changes.values(data))
        output.note(f"{name} is not on this machine: its shape is the preset's, and --data is not opened")
        output.document(_plan(shape, settings, None, nproc, machine))
        return
    directory = hub.resolve(name)
    settings = choose_recipe(name, read_config(directory), recipe, set_, changes.values(data))
    source = settings.data.source
    if source is None:
        raise FlasharError("no --data was passed and the recipe names none; expected " + DATA_HELP)
    out = out or Path(f"{Path(name).name}-flashar")
    inputs: dict[str, Any] = {"MODEL": directory, "--data": source, "--recipe": recipe, "--probe": probe}
    check_outputs(outputs(out), inputs, overwrite)
    where, precision = machine.prepare()
    job = load_job(directory, name, settings, probe, out, seed, where, precision)
    plan = plan_tokens(job.loaded, source, settings.data.subset, seed, EncodeOptions(settings.data))
    if dry_run:
        document = _plan(job.loaded.config, settings, job.recommended_layer, nproc, machine, job.stored_dtype)
        output.document(document | {"num_images": plan.num_images, "out": str(job.out)})
        return
    output.set_resume_command(["flashar", *sys.argv[1:]])
    options.note_slow(precision, where)
    output.note(plan.note)
    with output.progress(plan.num_images, "images") as bar:
        tokens = plan.tokens(bar.update)
    _show(job, _run(job, tokens, overwrite), json)


def _plan(
    base: RasterConfig,
    settings: AdaptRecipe,
    recommended: int | None,
    nproc: int | None,
    machine: options.Machine,
    stored_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """What ``--dry-run`` prints. Without a GPU the plan is for bfloat16 on an assumed one."""
    import torch

    from flashar_cli.adaptation.job import adapted_config
    from flashar_cli.adaptation.plan import describe

    where, precision = machine.prepare()
    if where.type != "cuda" and machine.dtype == "auto":
        precision = torch.bfloat16
    config = adapted_config(base, settings, recommended)
    return describe(base, config, settings, nproc or current_world().size, where, precision, stored_dtype)


def _run(job: AdaptJob, tokens: TokenSet, overwrite: bool) -> list[dict[str, Any]]:
    """Adapts, with progress on the terminal; returns all validations."""
    from flashar_cli.adaptation.records import validation_columns
    from flashar_cli.adaptation.run import adapt

    output.note(f"{len(tokens)} images; {job.config.structure}")

    def tell(kind: str, record: dict[str, Any]) -> None:
        if kind == "validation":
            losses = ", ".join(f"{key} {record[key]:.4f}" for key in validation_columns([record]))
            output.note(f"{record['stage']} step {record['step']}: {losses}")

    console = output.terminal()
    if console is None:
        return adapt(job, tokens, overwrite, tell, output.note)
    from flashar_cli.adaptation.live import LiveView

    with LiveView(console) as view:

        def show(kind: str, record: dict[str, Any]) -> None:
            tell(kind, record)
            view(kind, record)

        return adapt(job, tokens, overwrite, show, output.note)


def _show(job: AdaptJob, validations: list[dict[str, Any]], json: bool) -> None:
    from flashar_cli.adaptation.artifacts import REPORT_FILE
    from flashar_cli.adaptation.records import adapted_loss, validation_columns

    if not current_world().is_main:
        return
    last, report = validations[-1], job.out / REPORT_FILE
    if json:
        output.document({"out": str(job.out), "report": str(report), "validation": last})
        return
    columns = validation_columns(validations)
    rows = [
        [f"{v['stage']} {v['step']}", *(f"{v[key]:.4f}" if key in v else "-" for key in columns)] for v in validations
    ]
    output.table("validation, nats per token", ["after", *columns], rows)
    found = adapted_loss(last)
    assert found is not None, "checked when the run began"
    name, loss = found
    output.result(f"wrote {job.out}: {name} loss {loss:.4f}, raster base {validations[0]['raster']:.4f}")
    output.note(f"the report is {report}")
