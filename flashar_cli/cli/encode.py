"""`flashar encode`: images to token shards."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from flashar_cli.cli import options, output
from flashar_cli.cli.launch import launch
from flashar_cli.config.recipe import DATA_DEFAULTS
from flashar_cli.data.options import DATA_HELP, EncodeOptions
from flashar_cli.inputs import bounds

EXAMPLES = """Examples:  flashar encode llamagen-tiny --data shapes:2000 --out tokens  |
flashar encode llamagen-xl --data ./imagenet/train --augment ten-crop --subset 80000 --nproc 8 --out tokens-80k  |
flashar encode llamagen-t2i-xl --data ./shards --caption-column text --out tokens-t2i"""

Data = Annotated[str, typer.Option(help=DATA_HELP + ".")]
BatchSize = Annotated[int, options.number(bounds.BATCH, help="Images the tokenizer takes at once.")]
ShardSize = Annotated[int, options.number(bounds.BATCH, help="Images a file.")]
Workers = Annotated[int | None, options.number(bounds.THREADS, help="Threads that decode images. Default: by cores.")]


@dataclass(frozen=True)
class ViewOptions(options.DataOptions):
    """How images are found and cut."""

    augment: Annotated[
        str, typer.Option(help="center, center-flip (2 views an image) or ten-crop (10, as LlamaGen trains).")
    ] = DATA_DEFAULTS.augment
    crop_ratio: Annotated[
        float, options.number(bounds.CROP_RATIO, help="Of ten-crop: size of the image that is cut / size of a crop.")
    ] = DATA_DEFAULTS.crop_ratio


@dataclass(frozen=True)
class TokenizerMachine(options.Machine):
    """``auto`` is float32: tokens are made once and trained on for long, so that rounding would not pay."""

    dtype: Annotated[options.Dtype, typer.Option(help="Of the tokenizer; auto: float32, as adapt encodes.")] = "auto"


@options.flattened
def command(
    *,
    out: options.Out,
    data: Data,
    model: options.Model = None,
    base: options.Base = None,
    source: ViewOptions,
    subset: options.Subset = None,
    batch_size: BatchSize = EncodeOptions.batch_size,
    shard_size: ShardSize = EncodeOptions.shard_size,
    workers: Workers = EncodeOptions.workers,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    machine: TokenizerMachine,
    nproc: options.Nproc = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Encode images, or token grids of other programs (.pt), into token shards, which adapt and probe read as --data.

    Type the same command again after an interruption: shards that are done stay, and the result is the same to the
    byte.
    """
    launch(nproc)
    name = options.required_model(model, base)
    from flashar_cli.checkpoints import checkpoint, hub
    from flashar_cli.config import raster_only, read_config
    from flashar_cli.data.encoding import TOKEN_SHARDS, count_missing, encode_and_wait
    from flashar_cli.data.prepare import plan_encoding
    from flashar_cli.files.outputs import Output, check_outputs
    from flashar_cli.machine.world import current_world

    inputs = {"MODEL": hub.local_path(name), "--data": data}
    check_outputs([Output("--out", out, TOKEN_SHARDS, goes_on=True)], inputs, overwrite)
    directory = hub.resolve(name)
    where, precision = machine.prepare()
    import torch

    if machine.dtype == "auto":
        precision = torch.float32

    how = EncodeOptions(source.settings(), batch_size, shard_size, workers, precision, where)
    raster_only(read_config(directory), "encode")
    job = plan_encoding(checkpoint.load_outline(directory, where), data, subset, seed, how)
    missing = count_missing(job, out)
    if dry_run:
        output.document(job.document() | {"images_missing": missing, "out": str(out)})
        return
    output.set_resume_command(["flashar", *sys.argv[1:]])
    if missing:
        options.note_slow(precision, where)
        output.note(f"{missing} of {len(job.rows)} images of {data} are to be encoded, {job.num_shards} shards in all")
    with output.progress(missing // current_world().size, "images") as bar:
        done = encode_and_wait(job, out, missing, current_world(), overwrite, bar.update)
    if done is not None:
        output.document(done.summary()) if json else output.result(done.in_words())
