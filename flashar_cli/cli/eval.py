"""`flashar eval`: how good a model's images are, and how well it predicts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashar_cli.cli import options, output
from flashar_cli.cli.launch import launch
from flashar_cli.data.options import DATA_HELP, EncodeOptions
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds

if TYPE_CHECKING:
    import torch

    from flashar_cli.evaluation.judges.base import Judge
    from flashar_cli.evaluation.report import EvalReport

EXAMPLES = """Examples:  flashar eval llamagen-tiny llamagen-tiny-flashar  |
flashar eval llamagen-xl --reference VIRTUAL_imagenet256_labeled.npz --nproc 8 --out eval-xl"""

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL..", help="Checkpoint directories or presets (`flashar ls`).")
]
Decoders = Annotated[
    list[str] | None,
    typer.Option("--decoder", help="May be repeated. Default: what a model is trained for."),
]
NumImages = Annotated[
    int | None,
    options.number(bounds.TWO_IMAGES, help="Samples of each. Default: 5000; prompts 2000, --reference 50000."),
]
ReferenceFile = Annotated[
    Path | None, typer.Option("--reference", metavar="FILE.npz", help="Of ADM's evaluator, for FID and the like.")
]
InceptionFile = Annotated[
    Path | None, typer.Option("--inception", metavar="FILE", help="Weights, if not in PyTorch's cache.")
]
Data = Annotated[
    str | None, typer.Option(help=f"For code lengths: {DATA_HELP}, or token shards. Default: held-out shapes.")
]
NumValidation = Annotated[int, options.number(bounds.IMAGES, help="How many images of --data.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Samples, eval.json, eval.html. Default: ./NAME-eval.")]


@dataclass(frozen=True)
class Against:
    """What models are measured against."""

    reference: ReferenceFile = None
    inception: InceptionFile = None
    data: Data = None
    num_validation: NumValidation = 512

    @property
    def inputs(self) -> dict[str, Path | str | None]:
        """What is read, by option."""
        return {"--reference": self.reference, "--inception": self.inception, "--data": self.data}

    def judge(self, device: torch.device) -> Judge | None:
        """The judge of --reference. Raises FlasharError."""
        if self.reference is None:
            if self.inception is not None:
                raise FlasharError("--inception is for --reference, which is missing; pass both or neither")
            return None
        from flashar_cli.evaluation.judges import reference_judge

        return reference_judge(self.reference, self.inception, device)


@options.flattened
def command(
    *,
    models: Models,
    decoder: Decoders = None,
    num_images: NumImages = None,
    against: Against,
    out: Out = None,
    fastvar: options.FastVAR,
    sampling: options.SamplingOptions,
    batch_size: options.BatchSize = 50,
    optimisation: options.Optimisation = "eager",
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    machine: options.Machine,
    nproc: options.Nproc = None,
    json: options.Json = False,
) -> None:
    """Measure models: FID, sFID, Inception Score, precision and recall against a reference; for the embedded models
    class accuracy and Frechet distance; nats per token of held-out images.

    Several models and decoders are shown side by side. Type the same command again after an interruption.
    """
    launch(nproc)
    from flashar_cli.checkpoints import hub
    from flashar_cli.evaluation import pages
    from flashar_cli.files.outputs import Output, check_outputs

    out = out or Path(f"{Path(models[0]).name}-eval")
    inputs = {f"MODEL {name}": hub.local_path(name) for name in models}
    check_outputs([Output("--out", out, pages.FOLDER, goes_on=True)], {**inputs, **against.inputs}, overwrite)
    where, precision = machine.prepare()
    from flashar_cli.evaluation.arms import Asked, plan_arms
    from flashar_cli.evaluation.report import EvalReport
    from flashar_cli.evaluation.run import Validation, check, evaluate
    from flashar_cli.machine.processes import PATIENCE, process_group

    asked = Asked(
        models=models,
        decoders=decoder or [],
        judge=against.judge(where),
        num_images=num_images,
        choose_pruning=fastvar.choose,
        sampling=vars(sampling),
        seed=seed,
        batch_size=batch_size,
        optimisation=optimisation,
    )
    arms = plan_arms(asked, where, precision)
    validation = Validation(against.data, against.num_validation, batch_size, EncodeOptions())
    check(arms, validation, out, overwrite)
    output.set_resume_command(["flashar", *sys.argv[1:]])
    with process_group(where, PATIENCE), output.later_progress("images") as begin:
        measured = evaluate(arms, validation, seed, out, overwrite, begin, output.note)
    if measured:
        report = EvalReport.of(measured, ["flashar", *sys.argv[1:]], seed, where)
        pages.write(report, out)
        output.document(report.model_dump(mode="json")) if json else _show(report, out)


def _show(report: EvalReport, out: Path) -> None:
    from flashar_cli.evaluation import pages

    for title, header, rows in pages.tables(report):
        output.table(title, header, rows)
    output.result(f"wrote {out / pages.REPORT_FILE} and {out / pages.PAGE_FILE}")
