"""`flashar generate`: pictures or tokens from a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        int | None, typer.Option("--num-images", help="In total; default: one per label or prompt.")
    ] = None,
    decoder: Annotated[
        options.DecoderName | None, typer.Option("--decoder", help="Default: flashar where the model has a branch.")
    ] = None,
    cfg_scale: Annotated[
        float | None, typer.Option("--cfg-scale", help="Guidance; 1 turns it off. Default: the checkpoint's.")
    ] = None,
    cfg_interval: Annotated[
        str | None,
        typer.Option("--cfg-interval", metavar="A:B", help="Part of the cells that is guided, as fractions."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 is argmax. Default: the checkpoint's.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="0 turns it off. Default: the checkpoint's.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="1 turns it off. Default: the checkpoint's.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")] = 16,
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
    """Draw pictures, or tokens alone, with either decoder."""
    name = options.required_model(model, base)
    if out is None and tokens_out is None and npz is None:
        out = Path(f"{Path(name).name}-samples")
    want_images = not no_images and (out is not None or npz is not None)
    if no_images and npz is not None:
        raise FlasharError("--npz holds pictures, but --no-images was passed; leave one of them out")
    _check_targets(out, tokens_out, npz, overwrite)

    import torch

    from flashar_cli import runtime
    from flashar_cli.api import load
    from flashar_cli.decoding.decoder import choose_order
    from flashar_cli.decoding.generate import generate_tokens

    runtime.set_threads(threads)
    runtime.keep_freed_memory()
    where = options.resolve_device(device)
    loaded = load(name, where, options.resolve_dtype(dtype, where), quantize.value if quantize else None)
    if want_images and loaded.tokenizer is None:
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

    engine = loaded.engine(optimisation.value, explain=output.note)
    if warm:
        loaded.model.prefix.check(conditions)
        rows = torch.arange(min(batch_size, max(total, 1))) % len(conditions)
        engine.warm(conditions[rows], order, params)
    batches, pictures = [], []
    started = time.perf_counter()
    with output.progress(max(total, 0), "images") as bar:
        for codes in generate_tokens(loaded.model, conditions, total, order, params, seed, batch_size, engine):
            batches.append(codes.cpu().numpy())
            if want_images:
                pictures.append(loaded.drawn_pictures(codes, engine))
            bar.update(len(codes))
    seconds = time.perf_counter() - started

    import numpy as np

    decoder_name = "raster" if order.name == "raster" else "flashar"
    settings: dict[str, Any] = {
        "model": name,
        "decoder": decoder_name,
        "seed": seed,
        "cfg_scale": params.cfg_scale,
        "cfg_interval": list(params.cfg_interval),
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "quantize": quantize.value if quantize else None,
    }
    tokens = np.concatenate(batches)
    images = np.concatenate(pictures) if want_images else None
    written = _write(tokens, images, settings, captions, out, tokens_out, npz)
    summary = {
        **settings,
        "num_images": total,
        "optimisation": engine.optimisation,
        "forwards_per_image": order.num_steps,
        "time_s": round(seconds, 4),
        "images_per_s": round(total / seconds, 4),
        "written": [str(path) for path in written],
    }
    if json:
        output.document(summary)
    else:
        speed = f"{total} images in {seconds:.2f} s ({total / seconds:.2f} images/s)"
        output.result(f"{decoder_name}: {speed}, {order.num_steps} forwards each; wrote {', '.join(map(str, written))}")


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


def _check_targets(out: Path | None, tokens_out: Path | None, npz: Path | None, overwrite: bool) -> None:
    """Refuses outputs that exist before any work is done."""
    from flashar_cli.files import refuse_existing, refuse_nonempty

    for option, path in (("--tokens-out", tokens_out), ("--npz", npz)):
        if path is not None:
            refuse_existing(path, overwrite, option)
    if out is not None:
        refuse_nonempty(out, overwrite)


def _write(
    tokens: NDArray[np.int64],
    images: NDArray[np.uint8] | None,
    settings: dict[str, Any],
    captions: list[str],
    out: Path | None,
    tokens_out: Path | None,
    npz: Path | None,
) -> list[Path]:
    import numpy as np

    from flashar_cli.data.pictures import contact_sheet, write_png
    from flashar_cli.files import atomic_directory, atomic_file

    written = []
    if out is not None:
        with atomic_directory(out) as folder:
            np.save(folder / "tokens.npy", tokens)
            if images is not None:
                width = max(5, len(str(len(images) - 1)))
                for index, image in enumerate(images):
                    shown = captions[index % len(captions)]
                    write_png(folder / f"{index:0{width}d}.png", image, {**settings, "image": index, "shows": shown})
                write_png(folder / "contact-sheet.png", contact_sheet(images), settings)
        written.append(out)
    if tokens_out is not None:
        with atomic_file(tokens_out) as file:
            np.save(file, tokens)
        written.append(tokens_out)
    if npz is not None and images is not None:
        with atomic_file(npz) as file:
            np.savez(file, arr_0=images)
        written.append(npz)
    return written
