"""`flashar bench`: raster against FlashAR decoding, and the published sampler, on one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashar_cli import bounds
from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError
from flashar_cli.text import shown

EXAMPLES = """Examples:

flashar bench llamagen-tiny-flashar

flashar bench llamagen-tiny --batch-sizes 1,8 --out bench.json

flashar bench --res 256,384,512,1024 --batch-sizes sweep --report bench.html

flashar bench llamagen-b --random-weights --upstream LlamaGen

flashar bench nar-b --random-weights --upstream NAR

flashar bench llamagen-tiny-flashar --quantize int8 --agreement
"""
SWEEP = "sweep"


def command(
    model: options.Model = None,
    base: options.Base = None,
    res: Annotated[
        str | None, typer.Option("--res", metavar="PIXELS,..", help="Sides of the pictures; default: the model's.")
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", metavar="B,B,..|sweep", help="Pictures at once; sweep: 1,2,4 to the limit.")
    ] = "1",
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            metavar="A,B,..",
            help="DECODER-LEVEL; levels: eager, packed (CPU), flex, compile, graph, forked (CUDA).",
        ),
    ] = None,
    upstream: Annotated[
        Path | None, typer.Option("--upstream", metavar="DIR", help="A LlamaGen or NAR clone: adds its own sampler.")
    ] = None,
    repeats: Annotated[int, options.number("--repeats", bounds.REPEATS, help="Measured runs of each arm.")] = 5,
    warmup: Annotated[int, options.number("--warmup", bounds.REPEATS, help="Runs before them, reported apart.")] = 1,
    cfg_scale: Annotated[
        float | None,
        options.number("--cfg-scale", bounds.CFG_SCALE, help="Guidance; default: the model's; 1 turns it off."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Bench the model's shape; needs no download.")
    ] = False,
    no_pixels: Annotated[
        bool, typer.Option("--no-pixels", help="Leave turning tokens into pixels out; the report says so.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.Quantize = None,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Compare each arm with float32 first: logits and greedy tokens.")
    ] = False,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Write the whole report, raw values too.")
    ] = None,
    report_out: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.md|.html", help="Write the report for people.")
    ] = None,
    plot_out: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the speed-up over the batch size.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files named by options.")] = False,
    json: options.Json = False,
) -> None:
    """Measure raster against FlashAR decoding on the same model.

    All arms run in turn, in one process. A base without a vertical branch gets a fresh one: the speed does not depend
    on what it has learned. Without MODEL: llamagen-xl on CUDA, llamagen-b on a CPU, with random weights.
    """
    sizes = None if batch_sizes.strip() == SWEEP else parse_batch_sizes(batch_sizes)
    sides = parse_sides(res)
    named = options.one_model(model, base)
    _check_outputs(out, report_out, plot_out, {"MODEL": named, "--upstream": upstream}, overwrite)

    from dataclasses import replace

    import torch

    from flashar_cli import runtime
    from flashar_cli.benchmarking.agreement import agreements, our_arms, references
    from flashar_cli.benchmarking.arms import choose_arms, refuse_impossible, split_arm
    from flashar_cli.benchmarking.estimate import expected_agreement_s, expected_s
    from flashar_cli.benchmarking.plan import Plan, num_runs
    from flashar_cli.benchmarking.published.upstream import load_upstream
    from flashar_cli.benchmarking.reports import tables
    from flashar_cli.benchmarking.reports.document import BenchReport, write_report
    from flashar_cli.benchmarking.roofline import roofline
    from flashar_cli.benchmarking.run import bench
    from flashar_cli.benchmarking.subject import converted, default_model, grids_of, load_subject
    from flashar_cli.benchmarking.sweep import refuse_what_cannot_fit, sizes_that_fit
    from flashar_cli.benchmarking.timing import measure_rates
    from flashar_cli.decoding.quantize import Scheme, check_scheme
    from flashar_cli.nn.sampling import SamplingParams

    if cfg_scale is not None:
        SamplingParams(cfg_scale=cfg_scale)  # refused before anything is loaded
    runtime.set_threads(threads)
    runtime.keep_freed_memory()
    chosen_device = options.resolve_device(device)
    chosen_dtype = options.resolve_dtype(dtype, chosen_device)
    chosen_arms = choose_arms(arms, chosen_device, upstream is not None)
    scheme: Scheme | None = quantize.value if quantize else None
    if scheme is not None and upstream is not None:
        raise FlasharError(f"--quantize {scheme} changes the weights that --upstream runs on; bench them apart")
    if scheme is not None:
        check_scheme(scheme, chosen_device, chosen_dtype)
    name = named or default_model(chosen_device)
    is_random = random_weights or named is None
    if len(sides) > 1 and not is_random:
        raise FlasharError(f"--res is {res}, but trained weights are of one grid; bench others with --random-weights")
    published = None if upstream is None else load_upstream(upstream)
    compared = our_arms(chosen_arms) if agreement else []
    if agreement and not compared:
        raise FlasharError("--agreement compares our own arms, and --arms names none; name one, e.g. flashar-eager")
    loaded_dtype = torch.float32 if compared else chosen_dtype
    subject = load_subject(name, sides[0] if sides else None, is_random, chosen_device, loaded_dtype, seed)
    if no_pixels:
        subject = replace(subject, tokenizer=None)
    config = subject.model.config
    grids = grids_of(config.tokenizer, sides)
    if published is not None:
        published.check_model(config)
    output.note(f"{subject.name}, {', '.join(map(str, grids or (config.order_grid,)))} tokens, {subject.weights}")
    options.note_slow(chosen_dtype, chosen_device)
    if subject.branch_added:
        output.note("this model has no vertical branch; benching it with a fresh one (its pictures would be noise)")

    generation = config.generation.model_dump()
    params = SamplingParams(**{**generation, **({} if cfg_scale is None else {"cfg_scale": cfg_scale})})
    if published is not None:
        published.check_params(params)
    plan = Plan(sizes or (1,), repeats, warmup, params, seed, chosen_arms, grids)
    if compared:
        seconds = expected_agreement_s(subject, plan, {split_arm(arm)[0] for arm in compared})
        output.note(f"one picture of each decoder in float32, to compare the arms with: about {duration(seconds)}")
    found = references(subject, plan) if compared else {}
    subject = converted(subject, chosen_dtype, scheme)
    refuse_impossible(subject, chosen_arms)
    if sizes is None:
        sizes, end = sizes_that_fit(subject, params, grids, len(chosen_arms))
        plan = replace(plan, batch_sizes=sizes, sweep_end=end)
    else:
        refuse_what_cannot_fit(subject, plan)
    rates = measure_rates(chosen_device, chosen_dtype)
    output.table("roofline: what each decoder can't do without on this machine", *roofline(subject, plan, rates))
    expected = expected_s(subject, plan) + expected_agreement_s(subject, plan, compared)
    output.note(f"expected time: about {duration(expected)}")
    agreed = agreements(subject, plan, found) if compared else ()
    if agreed:
        output.table(tables.AGREEMENT_TITLE, *tables.agreements(agreed))
        output.note(tables.AGREEMENT_REMARK)

    def keep(so_far: BenchReport) -> None:
        """What is measured is on disk, whatever becomes of the rest."""
        if out is not None:
            write_report(so_far, out)

    with output.progress(num_runs(plan), "runs") as bar:
        report = bench(subject, plan, rates, lambda: bar.update(1), published, agreed, keep)
    output.table(tables.title(report), *tables.arms(report))
    if published is not None or len(chosen_arms) > 2:
        output.table("one arm over another", *tables.speedups(report))
        output.note(tables.SPEEDUP_REMARK)
    for line in tables.remarks(report):
        output.note(line)
    keep(report)
    if report_out is not None:
        from flashar_cli.benchmarking.reports.pages import write_page

        write_page(report, report_out)
    if plot_out is not None:
        from flashar_cli.benchmarking.reports.plots import write_plot

        write_plot(report, plot_out)
    for path in filter(None, (out, report_out, plot_out)):
        output.note(f"wrote {path}")
    if json:
        output.document(report.model_dump(mode="json"))
    if report.sweep_end is not None and plan.sweep_end is None:
        raise FlasharError(f"{report.sweep_end}; use smaller --batch-sizes (what was measured before is reported)")


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """``'1,8'`` -> (1, 8). Raises FlasharError for anything but distinct whole numbers from 1."""
    return _parse_numbers("--batch-sizes", text, bounds.BATCH, "size", "1,8")


def parse_sides(text: str | None) -> tuple[int, ...]:
    """``'256,512'`` -> (256, 512), in pixels; nothing for None. Raises FlasharError as ``parse_batch_sizes`` does."""
    return () if text is None else _parse_numbers("--res", text, bounds.PIXELS, "side", "256,512")


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


def duration(seconds: float) -> str:
    """Seconds for people: ``8 s``, ``3 min``."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"


def _check_outputs(
    out: Path | None,
    report_out: Path | None,
    plot_out: Path | None,
    inputs: dict[str, str | Path | None],
    overwrite: bool,
) -> None:
    """Raises FlasharError for what could not be written, before anything is measured."""
    from flashar_cli.kinds import HTML, PNG, begins_with, json_object
    from flashar_cli.outputs import Output, check_outputs

    if report_out is not None and report_out.suffix not in (".md", ".html"):
        raise FlasharError(f"--report is {report_out}; expected a name that ends in .md or .html")
    if plot_out is not None and plot_out.suffix != ".png":
        raise FlasharError(f"--plot is {plot_out}; expected a name that ends in .png")
    page = HTML if report_out is not None and report_out.suffix == ".html" else begins_with("a bench report", b"# Dec")
    files = (
        ("--out", out, json_object("a bench report", "report_version", "batches")),
        ("--report", report_out, page),
        ("--plot", plot_out, PNG),
    )
    check_outputs([Output(option, path, kind) for option, path, kind in files if path is not None], inputs, overwrite)
    if plot_out is not None:
        from flashar_cli.reporting.figures import require_matplotlib

        require_matplotlib()
