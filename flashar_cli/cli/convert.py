"""`flashar convert`: upstream weights to the one checkpoint format, and back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flashar_cli import bounds
from flashar_cli.cli import options, output
from flashar_cli.errors import FlasharError

EXAMPLES = """Examples:  flashar convert c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --out llamagen-b  |
flashar convert flashar.pt --branch-layer 21 --grid 16x16 --out adapted  |
flashar convert adapted --to upstream --out upstream.pt"""


class FamilyName(StrEnum):
    llamagen = "llamagen"
    nar = "nar"
    llamagen_flashar = "llamagen-flashar"


class Target(StrEnum):
    flashar = "flashar"
    upstream = "upstream"


def command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Upstream .pt or .safetensors; a checkpoint with --to upstream.")
    ],
    out: options.Out,
    to: Annotated[
        Target, typer.Option("--to", help="flashar: write a checkpoint; upstream: write its layout back.")
    ] = Target.flashar,
    family: Annotated[FamilyName | None, typer.Option("--family", help="Default: told by the keys.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="VQ.pt", help="Image tokenizer to take along.")
    ] = None,
    num_heads: Annotated[
        int | None, options.number("--num-heads", bounds.HEADS, help="Attention heads, where no preset has this shape.")
    ] = None,
    grid: Annotated[str | None, typer.Option("--grid", metavar="HxW", help="Token rows and columns.")] = None,
    res: Annotated[
        int | None, options.number("--res", bounds.PIXELS, metavar="PIXELS", help="Picture side instead of --grid.")
    ] = None,
    branch_layer: Annotated[
        int | None,
        options.number(
            "--branch-layer", bounds.LAYER, metavar="M", help="Backbone block before which the branch starts."
        ),
    ] = None,
    branch_depth: Annotated[
        int, options.number("--branch-depth", bounds.LAYERS, help="How many of the last layers.* are the branch.")
    ] = 1,
    norm_eps: Annotated[float, options.number("--norm-eps", bounds.NORM_EPS, help="RMSNorm epsilon.")] = 1e-5,
    rope_base: Annotated[
        float, options.number("--rope-base", bounds.ROPE_BASE, help="Base of the rotary positions.")
    ] = 10000.0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Import upstream weights, or write the upstream layout back.

    Tensors are bit-exact both ways.
    """
    from flashar_cli import checkpoint
    from flashar_cli.grid import Grid
    from flashar_cli.outputs import Output, check_outputs
    from flashar_cli.upstream.convert import convert
    from flashar_cli.upstream.facts import ConvertOptions

    if to is Target.upstream:
        given = {
            "--family": family,
            "--tokenizer": tokenizer,
            "--num-heads": num_heads,
            "--grid": grid,
            "--res": res,
            "--branch-layer": branch_layer,
        }
        useless = [option for option, value in given.items() if value is not None]
        if useless:
            raise FlasharError(
                f"{', '.join(useless)} say how to read upstream files; leave them out with --to upstream"
            )
        written = _to_upstream(source, out, overwrite)
        output.document({"written": [str(path) for path in written]}) if json else output.result(
            "wrote " + ", ".join(map(str, written))
        )
        return
    check_outputs([Output("--out", out, checkpoint.CHECKPOINT)], {"SRC": source, "--tokenizer": tokenizer}, overwrite)
    converted = convert(
        source,
        ConvertOptions(
            family=family.value if family else None,
            num_heads=num_heads,
            grid=Grid.parse(grid) if grid else None,
            resolution=res,
            branch_layer=branch_layer,
            branch_depth=branch_depth,
            norm_eps=norm_eps,
            rope_base=rope_base,
        ),
        tokenizer,
    )
    for line in converted.notes:
        output.note(f"note: {line}")
    checkpoint.save(out, converted.config, converted.model_state, converted.tokenizer_state, overwrite)
    if json:
        output.document({"written": [str(out)], "config": converted.config.model_dump(mode="json")})
    else:
        from flashar_cli.listing import summary

        output.result(f"wrote {out}: {summary(converted.config)}")


def _to_upstream(source: Path, out: Path, overwrite: bool) -> list[Path]:
    """``out`` is a .pt or .safetensors file for the model alone, or a directory for model.pt and vq.pt."""
    import torch

    from flashar_cli import checkpoint, hub
    from flashar_cli.kinds import UPSTREAM_PICKLE, UPSTREAM_SAFETENSORS
    from flashar_cli.outputs import Output, check_outputs
    from flashar_cli.upstream.export import export, write_upstream

    as_file = out.suffix in (".pt", ".pth", ".safetensors")
    paths = [out] if as_file else [out / "model.pt", out / "vq.pt"]
    kind = UPSTREAM_SAFETENSORS if out.suffix == ".safetensors" else UPSTREAM_PICKLE
    check_outputs([Output("--out", path, kind) for path in paths], {"SRC": hub.local_path(str(source))}, overwrite)
    model, tokenizer = export(checkpoint.load(hub.resolve(str(source)), torch.device("cpu"), vq_dtype=None))
    states = [model] if as_file or tokenizer is None else [model, tokenizer]
    files = dict(zip(paths, states, strict=False))
    write_upstream(files)
    return list(files)
