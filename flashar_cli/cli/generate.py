"""`flashar generate`: pictures or tokens from a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli import bounds
from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from flashar_cli.api import ImageModel
    from flashar_cli.models.prefix import Conditions

EXAMPLES = """Examples:  flashar generate llamagen-tiny-flashar --labels star,heart --num-images 8 --out pictures  |
flashar generate llamagen-tiny --labels 0-9 --temperature 0 --tokens-out tokens.npy"""


def command(
    model: options.Model = None,
    base: options.Base = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Class ids, ranges (0-9) or names, separated by commas.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A caption; may be repeated.")] = None,
    caption_features: Annotated[
        Path | None,
        typer.Option(
            "--caption-features",
            metavar="FILE.safetensors",
            help="Text features: caption_features [B, 120, F], caption_mask [B, 120].",
        ),
    ] = None,
    num_images: Annotated[
        int | None, options.number("--num-images", bounds.IMAGES, help="In total; default: one per label or prompt.")
    ] = None,
    decoder: Annotated[
        options.DecoderName | None, typer.Option("--decoder", help="Default: flashar where the model has a branch.")
    ] = None,
    cfg_scale: Annotated[
        float | None,
        options.number("--cfg-scale", bounds.CFG_SCALE, help="Guidance; 1 turns it off. Default: the checkpoint's."),
    ] = None,
    cfg_interval: Annotated[
        str | None,
        typer.Option("--cfg-interval", metavar="A:B", help="Part of the cells that is guided, as fractions."),
    ] = None,
    temperature: Annotated[
        float | None,
        options.number("--temperature", bounds.TEMPERATURE, help="0 is argmax. Default: the checkpoint's."),
    ] = None,
    top_k: Annotated[
        int | None, options.number("--top-k", bounds.TOP_K, help="0 turns it off. Default: the checkpoint's.")
    ] = None,
    top_p: Annotated[
        float | None, options.number("--top-p", bounds.TOP_P, help="1 turns it off. Default: the checkpoint's.")
    ] = None,
    batch_size: Annotated[int, options.number("--batch-size", bounds.BATCH, help="Pictures at a time.")] = 16,
    optimisation: Annotated[
        options.OptimisationName,
        typer.Option("--optimisation", help="graph: CUDA graphs; compile: compiled blocks; packed: CPU, 2x memory."),
    ] = options.OptimisationName.eager,
    warm: Annotated[
        bool, typer.Option("--warm", help="Capture, compile and run one batch before the clock starts.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="PNG files, a contact sheet and tokens.npy. Default: ./NAME-samples."
        ),
    ] = None,
    tokens_out: Annotated[
        Path | None, typer.Option("--tokens-out", metavar="FILE.npy", help="Token grids int64 [num_images, H, W].")
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option("--npz", metavar="FILE", help="uint8 [N, H, W, 3] under arr_0, as the ADM evaluator reads."),
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Make tokens only.")] = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.Quantize = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Draw pictures, or tokens alone, with either decoder.

    They are written as they are made, into OUT.part until all are there. Type the same command again after an
    interruption: it goes on where it was, and the result is the same to the byte.
    """
    from flashar_cli import hub
    from flashar_cli.generation.targets import Targets, declared
    from flashar_cli.outputs import check_outputs

    name = options.required_model(model, base)
    if out is None and tokens_out is None and npz is None:
        out = Path(f"{Path(name).name}-samples")
    targets = Targets(out, tokens_out, npz, with_pictures=not no_images and (out is not None or npz is not None))
    if no_images and npz is not None:
        raise FlasharError("--npz holds pictures, but --no-images was passed; leave one of them out")
    inputs = {"MODEL": hub.local_path(name), "--caption-features": caption_features}
    check_outputs(declared(targets), inputs, overwrite)
    directory = hub.resolve(name)

    import torch

    from flashar_cli import checkpoint, runtime
    from flashar_cli.api import load
    from flashar_cli.decoding.decoder import choose_order
    from flashar_cli.decoding.generate import check_request
    from flashar_cli.generation.run import GenerateJob, generate

    runtime.set_threads(threads)
    runtime.keep_freed_memory()
    where = options.resolve_device(device)
    precision = options.resolve_dtype(dtype, where)
    loaded = load(str(directory), where, precision, quantize.value if quantize else None)
    if targets.with_pictures and loaded.tokenizer is None:
        raise FlasharError(
            f"{name} has no tokenizer, so it makes tokens only; pass --no-images or --tokens-out FILE.npy"
        )
    params = loaded.sampling(
        cfg_scale=cfg_scale,
        cfg_interval=_interval(cfg_interval),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    conditions, captions = _conditions(loaded, labels, prompt, caption_features)
    total = len(conditions) if num_images is None else num_images
    order = choose_order(loaded.model, decoder.value if decoder else None)

    check_request(loaded.model, conditions, total, order, params, batch_size)
    options.note_slow(precision, where)
    engine = loaded.engine(optimisation.value, explain=output.note)
    if warm:
        rows = torch.arange(min(batch_size, max(total, 1))) % len(conditions)
        engine.warm(conditions[rows], order, params)
    settings: dict[str, Any] = {
        "model": name,
        "decoder": "raster" if order.name == "raster" else "flashar",
        "seed": seed,
        "cfg_scale": params.cfg_scale,
        "cfg_interval": list(params.cfg_interval),
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "quantize": quantize.value if quantize else None,
    }
    sources = {
        "model_sha256": checkpoint.weights_sha256(directory),
        "config": loaded.config.model_dump(mode="json"),
        "device": where.type,
        "dtype": str(precision).removeprefix("torch."),
    }
    job = GenerateJob(loaded, engine, conditions, captions, total, order, params, seed, batch_size, settings, sources)
    output.set_resume_command(["flashar", *sys.argv[1:]])
    with ExitStack() as stack:

        def begin(missing: int) -> Callable[[int], None]:
            if missing < total:
                output.note(f"going on with {targets.work}: {total - missing} of {total} images are made")
            return stack.enter_context(output.progress(missing, "images")).update

        made = generate(job, targets, overwrite, begin)
    speed = made.num_images / made.seconds if made.num_images else None
    summary = {
        **settings,
        "num_images": total,
        "num_made": made.num_images,
        "optimisation": engine.optimisation,
        "forwards_per_image": order.num_steps,
        "time_s": round(made.seconds, 4),
        "images_per_s": None if speed is None else round(speed, 4),
        "written": [str(path) for path in targets.all],
    }
    if json:
        output.document(summary)
    else:
        count = f"{made.num_images} images" if made.num_images == total else f"{made.num_images} of {total} images"
        took = "" if speed is None else f" in {made.seconds:.2f} s ({speed:.2f} images/s)"
        written = ", ".join(map(str, targets.all))
        output.result(f"{settings['decoder']}: {count}{took}, {order.num_steps} forwards each; wrote {written}")


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise FlasharError(f"--cfg-interval is {text}; expected A:B with 0 <= A < B <= 1, e.g. 0:0.5") from None
    return start, end


def _conditions(
    loaded: ImageModel, labels: str | None, prompt: list[str] | None, features: Path | None
) -> tuple[Conditions, list[str]]:
    """What to draw, and a word for each condition."""
    import torch

    from flashar_cli.cli.labels import parse_labels
    from flashar_cli.config import ClassPrefix
    from flashar_cli.data.captions import encode_captions, read_caption_features
    from flashar_cli.models.prefix import Conditions

    prefix = loaded.config.prefix
    if isinstance(prefix, ClassPrefix):
        if prompt or features:
            raise FlasharError("this model is class-conditional; pass --labels, not captions")
        chosen = parse_labels(labels, prefix.num_classes, loaded.config.class_names)
        names = loaded.config.class_names
        return Conditions(labels=torch.tensor(chosen)), [names[k] if names else f"class {k}" for k in chosen]
    if labels is not None:
        raise FlasharError("this model is caption-conditional; pass --prompt or --caption-features, not --labels")
    if bool(prompt) == (features is not None):
        raise FlasharError("this model is caption-conditional; expected either --prompt or --caption-features FILE")
    if features is not None:
        conditions = read_caption_features(features)
        return conditions, [f"caption {k}" for k in range(len(conditions))]
    assert prompt
    return encode_captions(prompt, prefix.length, loaded.model.device), prompt
