"""`flashar encode`: pictures to code shards."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli import bounds
from flashar_cli.cli import options, output
from flashar_cli.cli.launch import launch

if TYPE_CHECKING:
    from flashar_cli.data.encode_job import EncodeJob

EXAMPLES = """Examples:  flashar encode llamagen-tiny --data shapes:2000 --out codes  |
flashar encode llamagen-xl --data ./imagenet/train --augment ten-crop --subset 80000 --nproc 8 --out codes-80k  |
flashar encode llamagen-t2i-xl --data ./shards --caption-column text --out codes-t2i"""


def command(
    out: options.Out,
    data: Annotated[str, typer.Option("--data", help=options.DATA_HELP + ".")],
    model: options.Model = None,
    base: options.Base = None,
    split: options.Split = None,
    image_column: options.ImageColumn = "image",
    label_column: options.LabelColumn = "label",
    caption_column: options.CaptionColumn = "caption",
    augment: Annotated[
        str,
        typer.Option("--augment", help="center, center-flip (2 views a picture) or ten-crop (10, as LlamaGen trains)."),
    ] = "center",
    crop_ratio: Annotated[
        float,
        options.number(
            "--crop-ratio", bounds.CROP_RATIO, help="Of ten-crop: size of the picture that is cut / size of a crop."
        ),
    ] = 1.1,
    subset: Annotated[
        int | None,
        options.number("--subset", bounds.IMAGES, help="Pictures to use, class by class, chosen by the seed."),
    ] = None,
    batch_size: Annotated[
        int, options.number("--batch-size", bounds.BATCH, help="Pictures the tokenizer takes at once.")
    ] = 64,
    shard_size: Annotated[int, options.number("--shard-size", bounds.BATCH, help="Pictures a file.")] = 1024,
    workers: Annotated[
        int | None,
        options.number("--workers", bounds.THREADS, help="Threads that decode pictures. Default: by CPU cores."),
    ] = None,
    max_bad: options.MaxBad = "1%",
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: Annotated[
        options.Dtype, typer.Option("--dtype", help="Of the tokenizer; auto: float32, as adapt and probe encode.")
    ] = options.Dtype.auto,
    threads: options.Threads = None,
    nproc: options.Nproc = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Encode pictures into code shards, which adapt and probe read as --data.

    Type the same command again after an interruption: shards that are done stay, and the result is the same to the
    byte.
    """
    launch(nproc)
    name = options.required_model(model, base)
    from flashar_cli import checkpoint, hub, runtime
    from flashar_cli.data.augment import Augmentation
    from flashar_cli.data.encode_job import MaxBad
    from flashar_cli.data.encoding import CODE_SHARDS, count_missing, wait_for_manifest
    from flashar_cli.data.encoding import encode as encode_shards
    from flashar_cli.data.prepare import EncodeOptions, plan_encoding
    from flashar_cli.data.sources.base import Columns
    from flashar_cli.outputs import Output, check_outputs
    from flashar_cli.world import current_world

    augmentation, allowed = Augmentation(augment, crop_ratio), MaxBad(max_bad)
    check_outputs(
        [Output("--out", out, CODE_SHARDS, goes_on=True)], {"MODEL": hub.local_path(name), "--data": data}, overwrite
    )
    directory = hub.resolve(name)
    runtime.set_threads(threads)
    where = options.resolve_device(device)
    import torch

    # Codes are made once and trained on for long: rounding is not worth the time that it saves.
    precision = torch.float32 if dtype is options.Dtype.auto else options.resolve_dtype(dtype, where)
    how = EncodeOptions(
        columns=Columns(split, image_column, label_column, caption_column),
        augmentation=augmentation,
        batch_size=batch_size,
        shard_size=shard_size,
        dtype=precision,
        max_bad=allowed,
        workers=workers,
    )
    job = plan_encoding(checkpoint.load(directory, where, torch.float32), data, subset, seed, how)
    missing = count_missing(job, out)
    if dry_run:
        output.document(_described(job) | {"pictures_missing": missing, "out": str(out)})
        return
    output.set_resume_command(["flashar", *sys.argv[1:]])
    if missing:
        options.note_slow(precision, where)
        output.note(
            f"{missing} of {len(job.rows)} pictures of {data} are to be encoded, {job.num_shards} shards in all"
        )
    started = time.perf_counter()
    with output.progress(missing // current_world().size, "images") as bar:
        encode_shards(job, out, current_world(), overwrite, bar.update)
    if not current_world().is_main:
        return
    manifest = wait_for_manifest(job, out)
    seconds = time.perf_counter() - started
    counts = manifest.counts
    if json:
        done = {"encoded": missing, "seconds_s": seconds, "images_per_s": missing / seconds}
        output.document({"out": str(out), **counts.model_dump(), "shards": len(manifest.shards), **done})
    elif not missing:
        output.result(f"{out} holds these {counts.pictures} pictures already; nothing was done")
    else:
        skipped = f", {counts.bad} bad ones skipped" if counts.bad else ""
        speed = f"{missing} pictures in {seconds:.1f} s, {missing / seconds:.1f} images/s"
        output.result(f"wrote {out}: {counts.pictures} pictures, {counts.views} views{skipped}; {speed}")


def _described(job: EncodeJob) -> dict[str, Any]:
    return {
        "data": job.data,
        **job.settings.document(),
        "shards": job.num_shards,
        "max_bad": job.max_bad.of(len(job.rows)),
    }
