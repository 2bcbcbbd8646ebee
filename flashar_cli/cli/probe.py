"""`flashar probe`: linear probes choose the branch layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashar_cli import bounds
from flashar_cli.cli import options, output

EXAMPLES = """Examples:  flashar probe llamagen-tiny --data shapes --num-images 2000  |
flashar probe llamagen-xl --data ./imagenet/train --head low-rank --rank 64 --layers 12-36 --out probe-xl"""


def command(
    model: options.Model = None,
    base: options.Base = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help=f"{options.DATA_HELP}, or a folder of code shards. Default for models of shapes: shapes.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Default: the checkpoint's directory if it is yours, else ./probe-NAME."
        ),
    ] = None,
    num_images: Annotated[
        int, options.number("--num-images", bounds.TWO_IMAGES, help="Pictures to use, class by class.")
    ] = 4096,
    num_validation: Annotated[
        int, options.number("--num-validation", bounds.IMAGES, help="How many of them are for validation.")
    ] = 256,
    mask: Annotated[str, typer.Option("--mask", help="raster, as the base was trained, or diagonal.")] = "raster",
    layers: Annotated[str | None, typer.Option("--layers", help="Indices m, e.g. 0,4-12. Default: all, 0..L.")] = None,
    head: Annotated[
        str, typer.Option("--head", help="full (D x V a probe), low-rank, or shared (D x D before the model's head).")
    ] = "full",
    rank: Annotated[int, options.number("--rank", bounds.WIDTH, help="Of low-rank probes.")] = 64,
    branch_depth: Annotated[
        int, options.number("--branch-depth", bounds.LAYERS, help="Blocks the branch will have.")
    ] = 1,
    batch_size: Annotated[int, options.number("--batch-size", bounds.BATCH, help="Pictures a step.")] = 16,
    lr: Annotated[float, options.number("--lr", bounds.LEARNING_RATE, help="Peak learning rate of the probes.")] = 3e-3,
    split: options.Split = None,
    image_column: options.ImageColumn = "image",
    label_column: options.LabelColumn = "label",
    caption_column: options.CaptionColumn = "caption",
    max_bad: options.MaxBad = "1%",
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train linear probes that recommend a branch layer.

    One for the right and one for the lower neighbour on every hidden state of the frozen backbone, in one pass.
    """
    from flashar_cli import checkpoint, hub, probing, runtime
    from flashar_cli.config import read_config
    from flashar_cli.data.encode_job import MaxBad
    from flashar_cli.data.prepare import EncodeOptions, plan_codes
    from flashar_cli.data.shapes import CLASS_NAMES
    from flashar_cli.data.sources.base import Columns
    from flashar_cli.data.sources.shapes import SHAPES
    from flashar_cli.errors import FlasharError
    from flashar_cli.kinds import PNG
    from flashar_cli.machine import require_memory
    from flashar_cli.outputs import Output, check_outputs
    from flashar_cli.preflight import check_base
    from flashar_cli.reporting.figures import require_matplotlib

    name = options.required_model(model, base)
    directory = hub.resolve(name)
    config = read_config(directory)
    settings = probing.ProbeSettings(
        layers=probing.parse_layers(layers, config.backbone.num_layers),
        mask=mask,
        head=head,
        rank=rank,
        batch_size=batch_size,
        lr=lr,
        branch_depth=branch_depth,
        seed=seed,
    )
    if out is None:
        out = directory if hub.place_of(directory) == "here" else Path(f"probe-{Path(name).name}")
    report_path, plot_path = out / "probe.json", out / "probe.png"
    # They may lie in MODEL, whose files have other names.
    files = [Output("--out", report_path, probing.REPORT), Output("--out", plot_path, PNG)]
    check_outputs(files, {"--data": data}, overwrite)
    if data is None and config.class_names != CLASS_NAMES:
        raise FlasharError("no --data was passed; expected " + options.DATA_HELP)
    data = data or SHAPES
    probes = len(settings.layers) * len(probing.DIRECTIONS)
    need_bytes = probing.memory_bytes(config, settings)
    need = need_bytes / 2**30
    output.note(f"{probes} {head} probes take {need:.2f} GiB with their optimizer, beside the model")
    if need > 16 and head == "full":
        output.note("that is much; --head low-rank or --head shared takes a fraction of it, --layers M-N fewer probes")
    require_matplotlib()  # refused now rather than after the work
    runtime.set_threads(threads)
    where = options.resolve_device(device)
    require_memory(f"{probes} {head} probes (--layers, --head, --rank)", need_bytes, where)
    precision = options.resolve_dtype(dtype, where)
    import torch

    loaded = checkpoint.load(directory, where, torch.float32)
    columns = Columns(split, image_column, label_column, caption_column)
    plan = plan_codes(loaded, data, num_images, seed, EncodeOptions(columns=columns, max_bad=MaxBad(max_bad)))
    if dry_run:
        layers_used = list(settings.layers)
        document = {"memory_gib": round(need, 3), "layers": layers_used, "num_images": plan.num_images}
        output.document(document | {"data": data, "out": str(out)})
        return
    options.note_slow(precision, where)
    output.note(plan.note)
    with output.progress(plan.num_images, "images") as bar:
        codes = plan.codes(bar.update)
    loss = check_base(loaded.model, codes, batch_size, precision)
    output.note(f"the base's raster loss on this data is {loss:.3f} nats per token")
    with output.progress(len(codes), "images") as bar:
        report = probing.run_probes(loaded.model, codes, settings, num_validation, precision, bar.update)
    report = {"model": Path(name).name, "model_sha256": checkpoint.weights_sha256(directory), **report}
    probing.write_report(report, report_path, plot_path)
    if json:
        output.document(report)
        return
    rows = [
        [
            str(row["layer"]),
            *(f"{row[f'{way}_loss']:.4f}" if f"{way}_loss" in row else "-" for way in probing.DIRECTIONS),
            *(f"{100 * row[f'{way}_top1']:.1f} %" if f"{way}_top1" in row else "-" for way in probing.DIRECTIONS),
        ]
        for row in report["layers"]
    ]
    header = ["before block m", "right loss", "lower loss", "right top-1", "lower top-1"]
    output.table(f"{settings.mask} mask, {report['num_validation']} validation pictures", header, rows)
    output.result(f"recommended branch layer {report['recommended_layer']}; wrote {report_path} and {plot_path}")
