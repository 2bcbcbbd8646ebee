"""`flashar generate`: images or tokens from a model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashar_cli.cli import options, output
from flashar_cli.cli.launch import launch
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds

if TYPE_CHECKING:
    from flashar_cli.data.conditions import Given
    from flashar_cli.generation.layout import Layout

GENEVAL_SAMPLES = 4  # as its authors make

EXAMPLES = """Examples:  flashar generate llamagen-tiny-flashar --labels star,heart --num-images 8 --out images  |
flashar generate llamagen-tiny --labels 0-9 --temperature 0 --tokens-out tokens.npy"""


@dataclass(frozen=True)
class Shown:
    """What the images show, and how often."""

    labels: Annotated[str | None, typer.Option(help="Class ids, ranges (0-9) or names, separated by commas.")] = None
    prompt: Annotated[list[str] | None, typer.Option(help="What an image shows; may be repeated.")] = None
    prompts_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='A prompt a line, or .jsonl: {"prompt": ".."} a line.')
    ] = None
    geneval: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="GenEval's metadata; --out in the layout that it reads.")
    ] = None
    samples_per_prompt: Annotated[
        int | None,
        options.number(bounds.SAMPLES, help="Images of each prompt in turn. Default: 4 with --geneval, else 1."),
    ] = None
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What guidance leads away from, for models that read text.")
    ] = None
    prompt_tokens: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help='Text token ids: {"cond": [[..]], "uncond": [[..]]}.')
    ] = None
    caption_features: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Text features: caption_features [B, 120, F], caption_mask [B, 120].",
        ),
    ] = None

    num_images: Annotated[
        int | None, options.number(bounds.IMAGES, help="In total; default: one per label or prompt.")
    ] = None

    @property
    def inputs(self) -> dict[str, Path | None]:
        """The files to read."""
        files = ("prompts_file", "geneval", "prompt_tokens", "caption_features")
        return {f"--{name.replace('_', '-')}": getattr(self, name) for name in files}

    def read(self) -> tuple[Given, Layout | None]:
        """The conditions, and the layout of --geneval. Raises FlasharError for wrong files, and for options that
        contradict each other.
        """
        from flashar_cli.data.conditions import Given
        from flashar_cli.generation.layout import GenEval
        from flashar_cli.generation.prompts import read_prompts, repeated

        sources = {"--prompt": self.prompt or None, "--prompts-file": self.prompts_file, "--geneval": self.geneval}
        passed = [option for option, value in sources.items() if value is not None]
        if len(passed) > 1:
            raise FlasharError(f"{' and '.join(passed)} all say what images show; pass one of them")
        if not passed and self.samples_per_prompt is not None:
            raise FlasharError("--samples-per-prompt is for --prompt, --prompts-file and --geneval; use --num-images")
        if self.geneval is not None and self.num_images is not None:
            raise FlasharError("--num-images: --geneval makes images of all its prompts; use --samples-per-prompt")
        prompts, layout, samples = self.prompt, None, self.samples_per_prompt or 1
        if self.prompts_file is not None:
            prompts = read_prompts(self.prompts_file)
        if self.geneval is not None:
            samples = self.samples_per_prompt or GENEVAL_SAMPLES
            layout = GenEval.read(self.geneval, samples)
            prompts = list(layout.prompts)
        given = Given(
            labels=self.labels,
            prompts=repeated(prompts, samples) if prompts else None,
            caption_features=self.caption_features,
            prompt_tokens=self.prompt_tokens,
            negative_prompts=None if self.negative_prompt is None else [self.negative_prompt],
            prompts_option=passed[0] if passed else "--prompt",
        )
        return given, layout


GridOption = Annotated[
    Any | None,
    typer.Option(
        "--grid", metavar="HxW", parser=Grid.parse, help="Token rows and columns, for models that know several."
    ),
]
DecoderName = Annotated[
    str | None,
    typer.Option(
        callback=options.known_decoder,
        help="raster, flashar, naive, zipar[:W], jacobi[:W], block-diffusion[:S]; scale, truncate, fastvar. Default: "
        "what the model is trained for.",
    ),
]
ImageSize = Annotated[
    int | None,
    options.number(bounds.IMAGE_SIDE, metavar="PIXELS", help="Resize images, as published FIDs of 384 at 256 do."),
]
Warm = Annotated[bool, typer.Option("--warm", help="Capture, compile and run one batch before the clock starts.")]


@dataclass(frozen=True)
class How:
    """How it is made."""

    grid: GridOption = None
    decoder: DecoderName = None
    batch_size: options.BatchSize = 16
    optimisation: options.Optimisation = "eager"
    image_size: ImageSize = None


@dataclass(frozen=True)
class Files:
    """What is written."""

    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="PNG files, a contact sheet and the tokens. Default: ./NAME-samples."),
    ] = None
    tokens_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy|.npz", help="Grids int64 [num_images, H, W]; .npz: an array for each map."),
    ] = None
    npz: Annotated[
        Path | None, typer.Option(metavar="FILE", help="uint8 [N, H, W, 3] as arr_0, for the ADM evaluator.")
    ] = None
    no_images: Annotated[bool, typer.Option("--no-images", help="Make tokens only.")] = False


@options.flattened
def command(
    *,
    model: options.Model = None,
    base: options.Base = None,
    shown: Shown,
    how: How,
    fastvar: options.FastVAR,
    sampling: options.SamplingOptions,
    warm: Warm = False,
    files: Files,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    machine: options.Machine,
    quantize: options.Quantize = None,
    nproc: options.Nproc = None,
    json: options.Json = False,
) -> None:
    """Make images, or tokens alone, with any decoder that the model has.

    They are written as they are made, into OUT.part until all are there. Type the same command again after an
    interruption: it goes on where it was, and the result is the same to the byte. With --nproc, or under torchrun, all
    processes write into the same OUT.part.
    """
    launch(nproc)
    from flashar_cli.checkpoints import hub
    from flashar_cli.files.outputs import check_outputs
    from flashar_cli.generation.targets import Targets

    name = options.required_model(model, base)
    given, layout = shown.read()
    targets = Targets.of(name, **vars(files), layout=layout)
    check_outputs(targets.outputs(), {"MODEL": hub.local_path(name), **shown.inputs}, overwrite)
    directory = hub.resolve(name)

    from flashar_cli.generation.job import Wanted, plan_job
    from flashar_cli.generation.run import generate
    from flashar_cli.machine.processes import PATIENCE, process_group

    wanted = Wanted(
        name=name,
        given=given,
        num_images=shown.num_images,
        choose_pruning=fastvar.choose,
        sampling=vars(sampling),
        seed=seed,
        quantize=quantize,
        **vars(how),
    )
    where, precision = machine.prepare()
    job = plan_job(directory, wanted, targets.with_images, files.tokens_out, where, precision, output.note)
    options.note_slow(precision, where)
    if warm:
        job.warm()
    output.set_resume_command(["flashar", *sys.argv[1:]])
    with process_group(where, PATIENCE), output.later_progress("images") as begin:
        made = generate(job, targets, overwrite, begin, output.note)
    output.document(made.summary(job, targets)) if json else output.result(made.in_words(job, targets))
