"""`flashar generate`: images or tokens from a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flashar_cli.cli import options, output
from flashar_cli.decoding.levels import get_level
from flashar_cli.inputs import bounds

EXAMPLES = """Examples:  flashar generate llamagen-tiny-flashar --labels star,heart --num-images 8 --out images  |
flashar generate llamagen-tiny --labels 0-9 --temperature 0 --tokens-out tokens.npy"""

Labels = Annotated[str | None, typer.Option(help="Class ids, ranges (0-9) or names, separated by commas.")]
Prompt = Annotated[list[str] | None, typer.Option(help="What an image shows; may be repeated.")]
CaptionFeatures = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.safetensors",
        help="Text features: caption_features [B, 120, F], caption_mask [B, 120].",
    ),
]
PromptTokens = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help='Text token ids: {"cond": [[..]], "uncond": [[..]]}.')
]
NumImages = Annotated[int | None, options.number(bounds.IMAGES, help="In total; default: one per label or prompt.")]
DecoderName = Annotated[
    str | None,
    typer.Option(
        callback=options.known_decoder,
        help="raster or flashar. Default: flashar where the model has a branch.",
    ),
]
BatchSize = Annotated[int, options.number(bounds.BATCH, help="Images at a time.")]
Optimisation = Annotated[
    str,
    typer.Option(
        callback=lambda name: get_level(name).name,
        help="eager; graph: CUDA graphs; compile: compiled blocks; packed: CPU, 2x memory.",
    ),
]
Warm = Annotated[bool, typer.Option("--warm", help="Capture, compile and run one batch before the clock starts.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="PNG files, a contact sheet and tokens.npy. Default: ./NAME-samples.")
]
TokensOut = Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Token grids int64 [num_images, H, W].")]
Npz = Annotated[Path | None, typer.Option(metavar="FILE", help="uint8 [N, H, W, 3] as arr_0, for the ADM evaluator.")]
NoImages = Annotated[bool, typer.Option("--no-images", help="Make tokens only.")]


@options.flattened
def command(
    *,
    model: options.Model = None,
    base: options.Base = None,
    labels: Labels = None,
    prompt: Prompt = None,
    caption_features: CaptionFeatures = None,
    prompt_tokens: PromptTokens = None,
    num_images: NumImages = None,
    decoder: DecoderName = None,
    sampling: options.SamplingOptions,
    batch_size: BatchSize = 16,
    optimisation: Optimisation = "eager",
    warm: Warm = False,
    out: Out = None,
    tokens_out: TokensOut = None,
    npz: Npz = None,
    no_images: NoImages = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    machine: options.Machine,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Make images, or tokens alone, with any decoder that the model has.

    They are written as they are made, into OUT.part until all are there. Type the same command again after an
    interruption: it goes on where it was, and the result is the same to the byte.
    """
    from flashar_cli.checkpoints import hub
    from flashar_cli.data.conditions import Given
    from flashar_cli.files.outputs import check_outputs
    from flashar_cli.generation.targets import Targets

    name = options.required_model(model, base)
    targets = Targets.of(name, out, tokens_out, npz, no_images)
    inputs = {"MODEL": hub.local_path(name), "--caption-features": caption_features, "--prompt-tokens": prompt_tokens}
    check_outputs(targets.outputs(), inputs, overwrite)
    directory = hub.resolve(name)

    from flashar_cli.generation.job import Wanted, plan_job
    from flashar_cli.generation.run import generate

    given = Given(labels, prompt, caption_features, prompt_tokens)
    wanted = Wanted(name, given, num_images, decoder, vars(sampling), seed, batch_size, optimisation, quantize)
    where, precision = machine.prepare()
    job = plan_job(directory, wanted, targets.with_images, where, precision, output.note)
    options.note_slow(precision, where)
    if warm:
        job.warm()
    output.set_resume_command(["flashar", *sys.argv[1:]])
    with ExitStack() as stack:

        def begin(missing: int) -> Callable[[int], None]:
            return stack.enter_context(output.progress(missing, "images")).update

        made = generate(job, targets, overwrite, begin, output.note)
    output.document(made.summary(job, targets)) if json else output.result(made.in_words(job, targets))
