"""`flashar probe`: linear probes choose the branch layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.config import BackboneConfig
from flashar_cli.data.options import DATA_HELP, EncodeOptions
from flashar_cli.inputs import bounds
from flashar_cli.probing.settings import DIRECTIONS, WIDE_VOCABULARY, ProbeSettings, default_head, parse_layers

EXAMPLES = """Examples:  flashar probe llamagen-tiny --data shapes --num-images 2000  |
flashar probe llamagen-xl --data ./imagenet/train --head low-rank --rank 64 --layers 12-36 --out probe-xl"""

Data = Annotated[
    str | None, typer.Option(help=f"{DATA_HELP}, or a folder of token shards. Default for models of shapes: shapes.")
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Default: the checkpoint's directory if it is yours, else ./probe-NAME."),
]
NumImages = Annotated[int, options.number(bounds.TWO_IMAGES, help="Images to use, class by class.")]
NumValidation = Annotated[int, options.number(bounds.IMAGES, help="How many of them are for validation.")]


@dataclass(frozen=True)
class ProbeOptions:
    """How probes are trained."""

    mask: Annotated[str, typer.Option(help="raster, as the base was trained, or diagonal.")] = ProbeSettings.mask
    layers: Annotated[str | None, typer.Option(help="Indices m, e.g. 0,4-12. Default: all, 0..L.")] = None
    head: Annotated[
        str | None,
        typer.Option(
            help="full (D x V a probe), low-rank, or shared (D x D before the model's head). "
            f"Default: full, but shared from {WIDE_VOCABULARY} tokens on."
        ),
    ] = None
    rank: Annotated[int, options.number(bounds.WIDTH, help="Of low-rank probes.")] = ProbeSettings.rank
    branch_depth: Annotated[int, options.number(bounds.LAYERS, help="Blocks of the branch.")] = (
        ProbeSettings.branch_depth
    )
    batch_size: Annotated[int, options.number(bounds.BATCH, help="Images a step.")] = ProbeSettings.batch_size
    lr: Annotated[float, options.number(bounds.LEARNING_RATE, help="Peak learning rate.")] = ProbeSettings.lr

    def settings(self, backbone: BackboneConfig, seed: int) -> ProbeSettings:
        """For this backbone. Raises FlasharError."""
        head, layers = self.head or default_head(backbone.vocab_size), parse_layers(self.layers, backbone.num_layers)
        return ProbeSettings(**{**vars(self), "head": head, "layers": layers, "seed": seed})


@options.flattened
def command(
    *,
    model: options.Model = None,
    base: options.Base = None,
    data: Data = None,
    out: Out = None,
    num_images: NumImages = 4096,
    num_validation: NumValidation = 256,
    probes: ProbeOptions,
    source: options.DataOptions,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    machine: options.Machine,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Train linear probes that recommend a branch layer.

    One for the right and one for the lower neighbour on every hidden state of the frozen backbone, in one pass.
    """
    from flashar_cli.checkpoints import checkpoint, hub
    from flashar_cli.config import raster_only, read_config
    from flashar_cli.data.prepare import plan_tokens
    from flashar_cli.files.outputs import check_outputs
    from flashar_cli.probing import report, run
    from flashar_cli.training.validation import check_base

    name = options.required_model(model, base)
    directory = hub.resolve(name)
    config = raster_only(read_config(directory), "probe")
    settings = probes.settings(config.backbone, seed)
    out = out or (directory if hub.place_of(directory) == "here" else Path(f"probe-{Path(name).name}"))
    check_outputs(report.outputs(out), {"--data": data}, overwrite)
    data = data or run.default_data(config, Path(name).name)
    for line in run.memory_notes(config, settings):
        output.note(line)
    where, precision = machine.prepare()
    import torch

    run.check_room(config, settings, where)
    loaded = checkpoint.load(directory, where, torch.float32)
    plan = plan_tokens(loaded, data, num_images, seed, EncodeOptions(source.settings()))
    if dry_run:
        needs = run.describe(config, settings)
        output.document(needs | {"num_images": plan.num_images, "data": data, "out": str(out)})
        return
    options.note_slow(precision, where)
    output.note(plan.note)
    with output.progress(plan.num_images, "images") as bar:
        tokens = plan.tokens(bar.update)
    loss = check_base(loaded.model, tokens, settings.batch_size, precision)
    output.note(f"the base's raster loss on this data is {loss:.3f} nats per token")
    with output.progress(len(tokens), "images") as bar:
        found = run.run_probes(loaded.model, tokens, settings, num_validation, precision, bar.update)
    found = {"model": Path(name).name, "model_sha256": checkpoint.weights_sha256(directory), **found}
    report.write_report(found, out)
    output.document(found) if json else _show(found, out)


def _show(report: dict[str, Any], out: Path) -> None:
    rows = [
        [
            str(row["layer"]),
            *(f"{row[f'{way}_loss']:.4f}" if f"{way}_loss" in row else "-" for way in DIRECTIONS),
            *(f"{100 * row[f'{way}_top1']:.1f} %" if f"{way}_top1" in row else "-" for way in DIRECTIONS),
        ]
        for row in report["layers"]
    ]
    header = ["before block m", "right loss", "lower loss", "right top-1", "lower top-1"]
    output.table(f"{report['mask']} mask, {report['num_validation']} validation images", header, rows)
    written = f"{out / 'probe.json'} and {out / 'probe.png'}"
    output.result(f"recommended branch layer {report['recommended_layer']}; wrote {written}")
