"""`flashar bench`: one way of decoding against another, and the published sampler, on one model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.decoding.levels import LEVELS
from flashar_cli.errors import FlasharError
from flashar_cli.inputs import bounds
from flashar_cli.inputs.text import shown

if TYPE_CHECKING:
    from flashar_cli.benchmarking.reports.document import BenchReport

EXAMPLES = """Examples:

flashar bench llamagen-tiny-flashar

flashar bench llamagen-tiny --batch-sizes 1,8 --out bench.json

flashar bench --res 256,384,512,1024 --batch-sizes sweep --report bench.html

flashar bench llamagen-b --random-weights --upstream LlamaGen

flashar bench nar-b --random-weights --upstream NAR

flashar bench llamagen-tiny-flashar --quantize int8 --agreement

flashar bench infinity-2b --random-weights --layers 2 --res 256
"""
SWEEP = "sweep"
LEVEL_NAMES = ", ".join(
    f"{level.name} ({level.device.upper()})" if level.device else level.name for level in LEVELS.values()
)


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """``'1,8'`` -> (1, 8), ``'sweep'`` -> (). Raises FlasharError for anything but distinct whole numbers from 1."""
    return () if text.strip() == SWEEP else _parse_numbers("--batch-sizes", text, bounds.BATCH, "size", "1,8")


def parse_sides(text: str) -> tuple[int, ...]:
    """``'256,512'`` -> (256, 512), in pixels. Raises FlasharError as ``parse_batch_sizes`` does."""
    return _parse_numbers("--res", text, bounds.PIXELS, "side", "256,512")


def _parse_numbers(option: str, text: str, allowed: bounds.Bounds, noun: str, example: str) -> tuple[int, ...]:
    numbers = []
    for part in text.split(","):
        number = bounds.decimal(part)
        if number is None or number not in allowed:
            raise FlasharError(
                f"{option} is {shown(text)}; expected each {noun} to be {allowed}, with commas between, e.g. {example}"
            )
        numbers.append(number)
    if len(set(numbers)) < len(numbers):
        raise FlasharError(f"{option} is {shown(text)}; expected each {noun} once")
    return tuple(numbers)


@dataclass(frozen=True)
class Work:
    """What is benched, and how often."""

    res: Annotated[
        Any, typer.Option(metavar="PIXELS,..", parser=parse_sides, help="Sides of the images; default: the model's.")
    ] = None
    batch_sizes: Annotated[
        Any,
        typer.Option(
            metavar="B,B,..|sweep",
            parser=parse_batch_sizes,
            help="Images at once; sweep: 1,2,4 to the limit.",
        ),
    ] = "1"
    arms: Annotated[str | None, typer.Option(metavar="A,B,..", help=f"DECODER-LEVEL; levels: {LEVEL_NAMES}.")] = None
    upstream: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A LlamaGen, NAR or VAR clone: adds its own sampler.")
    ] = None
    repeats: Annotated[int, options.number(bounds.REPEATS, help="Measured runs of each arm.")] = 5
    warmup: Annotated[int, options.number(bounds.REPEATS, help="Runs before them, reported apart.")] = 1
    cfg_scale: Annotated[
        float | None, options.number(bounds.CFG_SCALE, help="Guidance; default: the model's; 1 turns it off.")
    ] = None
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Bench the model's shape; needs no download.")
    ] = False
    layers: Annotated[
        int | None, options.number(bounds.LAYERS, help="With random weights: only so many of the model's blocks.")
    ] = None
    no_pixels: Annotated[bool, typer.Option("--no-pixels", help="Stop at tokens; the report says so.")] = False
    quantize: options.Quantize = None
    agreement: Annotated[bool, typer.Option("--agreement", help="Compare each arm with float32 first.")] = False
    seed: options.Seed = 0


@dataclass(frozen=True)
class Files:
    """Where the report is written."""

    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the report, raw values too.")] = None
    report_out: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.md|.html", help="Write the report for people.")
    ] = None
    plot_out: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the speed-up over the batch size.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files named by options.")] = False

    def check(self, inputs: dict[str, str | Path | None]) -> None:
        """Raises FlasharError for what could not be written, before anything is measured."""
        from flashar_cli.files.kinds import HTML, PNG, begins_with, json_object
        from flashar_cli.files.outputs import Output, check_outputs

        out, page, plot = self.out, self.report_out, self.plot_out
        if page is not None and page.suffix not in (".md", ".html"):
            raise FlasharError(f"--report is {page}; expected a name that ends in .md or .html")
        if plot is not None and plot.suffix != ".png":
            raise FlasharError(f"--plot is {plot}; expected a name that ends in .png")
        page_kind = HTML if page is not None and page.suffix == ".html" else begins_with("a bench report", b"# Dec")
        files = (
            ("--out", out, json_object("a bench report", "report_version", "batches")),
            ("--report", page, page_kind),
            ("--plot", plot, PNG),
        )
        named = [Output(option, path, kind) for option, path, kind in files if path is not None]
        check_outputs(named, inputs, self.overwrite)
        if plot is not None:
            from flashar_cli.reporting.figures import require_matplotlib

            require_matplotlib()

    def keep(self, report: BenchReport) -> None:
        """Writes what is measured so far, so that it is on disk even if the rest fails."""
        from flashar_cli.benchmarking.reports.document import write_report

        if self.out is not None:
            write_report(report, self.out)

    def write(self, report: BenchReport) -> None:
        """Writes everything."""
        from flashar_cli.benchmarking.reports.pages import write_page, write_plot

        self.keep(report)
        if self.report_out is not None:
            write_page(report, self.report_out)
        if self.plot_out is not None:
            write_plot(report, self.plot_out)
        for path in filter(None, (self.out, self.report_out, self.plot_out)):
            output.note(f"wrote {path}")


@options.flattened
def command(
    work: Work,
    fastvar: options.FastVAR,
    machine: options.Machine,
    files: Files,
    model: options.Model = None,
    base: options.Base = None,
    json: options.Json = False,
) -> None:
    """Measure raster against FlashAR decoding on the same model, or scale against FastVAR.

    All arms run in turn, in one process. A base without a vertical branch gets a fresh one: the speed does not depend
    on what it has learned. Without MODEL: llamagen-xl on CUDA, llamagen-b on a CPU, with random weights.
    """
    named = options.one_model(model, base)
    files.check({"MODEL": named, "--upstream": work.upstream})

    from flashar_cli.benchmarking.estimate import roofline
    from flashar_cli.benchmarking.reports import tables
    from flashar_cli.benchmarking.session import Session
    from flashar_cli.machine.rates import measure_rates

    device, dtype = machine.prepare()
    session = Session.of(named, device, dtype, **vars(work), choose_pruning=fastvar.choose)
    subject = session.subject
    output.note(f"{subject.name}, {', '.join(map(str, session.plan.grids))} tokens, {subject.weights}")
    options.note_slow(dtype, device)
    if subject.branch_added:
        output.note("this model has no vertical branch; benching it with a fresh one (its images would be noise)")
    if session.compared:
        seconds = duration(session.references_s())
        output.note(f"one image of each decoder in float32, to compare the arms with: about {seconds}")
    session.make_ready()
    rates = measure_rates(device, dtype)
    title = "roofline: what each decoder can't do without on this machine"
    output.table(title, *roofline(session.subject, session.plan, rates))
    output.note(f"expected time: about {duration(session.expected_s())}")
    if agreed := session.compare_arms():
        output.table(tables.AGREEMENT_TITLE, *tables.agreements(agreed))
        output.note(tables.AGREEMENT_REMARK)
    with output.progress(session.plan.num_runs, "runs") as bar:
        report = session.run(rates, lambda: bar.update(1), files.keep)
    output.table(tables.title(report), *tables.arms(report))
    if len(report.settings.arms) > 2 or report.upstream is not None:
        output.table("one arm over another", *tables.speedups(report))
        output.note(tables.SPEEDUP_REMARK)
    if (by_scale := tables.steps(report))[1]:
        output.table(tables.STEPS_TITLE, *by_scale)
    for line in tables.remarks(report):
        output.note(line)
    files.write(report)
    if json:
        output.document(report.model_dump(mode="json"))
    if report.sweep_end is not None and session.plan.sweep_end is None:
        raise FlasharError(f"{report.sweep_end}; use smaller --batch-sizes (what was measured before is reported)")


def duration(seconds: float) -> str:
    """Seconds for people: ``8 s``, ``3 min``."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"
