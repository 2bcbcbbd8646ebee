"""`flashar bench`: raster against FlashAR decoding on one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.benchmarking.report import ArmReport, BatchReport, BenchReport

EXAMPLES = """Examples:

flashar bench llamagen-tiny-flashar

flashar bench llamagen-tiny --batch-sizes 1,8 --out bench.json

flashar bench --res 512
"""


def command(
    model: options.Model = None,
    base: options.Base = None,
    res: Annotated[
        int | None, typer.Option("--res", min=1, metavar="PIXELS", help="Side of the pictures; default: the model's.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option("--batch-sizes", metavar="B,B,..", help="Pictures at once.")] = "1",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Measured runs of each decoder.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Runs before them, reported apart.")] = 1,
    cfg_scale: Annotated[
        float | None, typer.Option("--cfg-scale", help="Guidance; default: the model's; 1 turns it off.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Bench the model's shape; needs no download.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Write the whole report, raw values too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --out names.")] = False,
    json: options.Json = False,
) -> None:
    """Measure raster against FlashAR decoding on the same model.

    Both run in turn, in one process. A base without a vertical branch gets a fresh one: the speed does not depend on
    what it has learned. Without MODEL: llamagen-xl on CUDA, llamagen-b on a CPU, with random weights.
    """
    sizes = parse_batch_sizes(batch_sizes)
    from flashar_cli.benchmarking.report import write_report
    from flashar_cli.files import refuse_existing

    if out is not None:
        refuse_existing(out, overwrite)

    from flashar_cli import runtime
    from flashar_cli.benchmarking.estimate import expected_s
    from flashar_cli.benchmarking.run import Plan, bench, num_runs
    from flashar_cli.benchmarking.subject import default_model, load_subject
    from flashar_cli.benchmarking.timing import measure_rates
    from flashar_cli.nn.sampling import SamplingParams

    if cfg_scale is not None:
        SamplingParams(cfg_scale=cfg_scale)  # refused before anything is loaded
    runtime.set_threads(threads)
    chosen_device = options.resolve_device(device)
    chosen_dtype = options.resolve_dtype(dtype, chosen_device)
    named = options.one_model(model, base)
    name = named or default_model(chosen_device)
    subject = load_subject(name, res, random_weights or named is None, chosen_device, chosen_dtype, seed)
    config = subject.model.config
    output.note(f"{subject.name}, {config.order_grid} tokens, {subject.weights}")
    if subject.branch_added:
        output.note("this model has no vertical branch; benching it with a fresh one (its pictures would be noise)")

    generation = config.generation.model_dump()
    params = SamplingParams(**{**generation, **({} if cfg_scale is None else {"cfg_scale": cfg_scale})})
    plan = Plan(sizes, repeats, warmup, params, seed)
    output.note(f"expected time: about {duration(expected_s(subject, plan))}")
    rates = measure_rates(chosen_device, chosen_dtype)
    with output.progress(num_runs(plan), "runs") as bar:
        report = bench(subject, plan, rates, on_run=lambda: bar.update(1))
    _show(report)
    if out is not None:
        write_report(report, out)
        output.note(f"report: {out}")
    if json:
        output.document(report.model_dump(mode="json"))


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """``'1,8'`` -> (1, 8). Raises FlasharError for anything but distinct whole numbers from 1."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise FlasharError(f"--batch-sizes is '{text}'; expected whole numbers from 1 with commas between, e.g. 1,8")
    sizes = tuple(int(part) for part in parts)
    if len(set(sizes)) < len(sizes):
        raise FlasharError(f"--batch-sizes is '{text}'; expected each size once")
    return sizes


def duration(seconds: float) -> str:
    """Seconds for people: ``8 s``, ``3 min``."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"


def _show(report: BenchReport) -> None:
    settings, machine = report.settings, report.hardware
    where = machine.gpu or f"{machine.cpu}, {settings.num_threads} thread{'s' if settings.num_threads > 1 else ''}"
    title = f"{report.model.name} {report.model.grid}, {settings.dtype}, guidance {settings.cfg_scale:g}, {where}"
    header = ["batch", "decoder", "forwards", "tokens ms", "quartiles ms", "pixels ms", "img/s", "x floor", "of copy"]
    header += ["speed-up"] if report.hardware.gpu is None else ["peak GiB", "speed-up"]
    rows = [row for batch in report.batches for row in _rows(batch, report.hardware.gpu is not None)]
    output.table(title, header, rows)
    rates = report.rates
    output.note(
        f"measured here: copy {rates.copy_bytes_per_s / 1e9:.1f} GB/s, "
        f"matrix product {rates.matmul_flops_per_s / 1e12:.2f} TFLOP/s; tokens = prefix and all steps; "
        f"pixels = tokens to picture; medians over {settings.repeats} x A B"
    )


def _rows(batch: BatchReport, on_gpu: bool) -> list[list[str]]:
    rows = []
    for name, arm in (("raster", batch.raster), ("flashar", batch.flashar)):
        peak = [] if not on_gpu else [f"{(arm.peak_memory_bytes or 0) / 2**30:.2f}"]
        speedup = f"{batch.speedup:.2f}" if name == "flashar" else ""
        rows.append([str(batch.batch_size), name, *_numbers(arm), *peak, speedup])
    return rows


def _numbers(arm: ArmReport) -> list[str]:
    tokens, pixels = arm.token_generation_s, arm.token_decode_s
    return [
        str(arm.forwards_per_image),
        f"{tokens.median_s * 1000:.1f}",
        f"{tokens.p25_s * 1000:.1f}-{tokens.p75_s * 1000:.1f}",
        "-" if pixels is None else f"{pixels.median_s * 1000:.1f}",
        f"{arm.images_per_s:.2f}",
        f"{arm.times_floor:.1f}",
        f"{arm.share_of_copy:.0%}",
    ]
