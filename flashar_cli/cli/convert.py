"""`flashar convert`: upstream weights to the one checkpoint format, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flashar_cli.cli import options, output
from flashar_cli.config import read_config
from flashar_cli.errors import FlasharError
from flashar_cli.families import FAMILIES
from flashar_cli.grid import Grid
from flashar_cli.inputs import bounds
from flashar_cli.inputs.text import shown

EXAMPLES = """Examples:  flashar convert c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --out llamagen-b  |
flashar convert flashar.pt --branch-layer 21 --grid 16x16 --out adapted  |
flashar convert adapted --to upstream --out upstream.pt"""

Target = Literal["flashar", "upstream"]
FamilyName: Any = Literal[*FAMILIES]


def _sides(text: str) -> tuple[int, ...]:
    sides = [bounds.decimal(part) for part in text.split(",")]
    found = tuple(side for side in sides if side is not None and side in bounds.SIDE)
    if len(found) < len(sides):
        raise FlasharError(f"--scales is {shown(text)}; expected the sides of maps, e.g. 1,2,3,4")
    return found


@dataclass(frozen=True)
class Unsaid:
    """What upstream files may not tell: the fields of ``families.base.ConvertOptions``."""

    family: Annotated[FamilyName | None, typer.Option(help="Default: told by the keys.")] = None
    num_heads: Annotated[
        int | None, options.number(bounds.HEADS, help="Attention heads, where no preset has this shape.")
    ] = None
    grid: Annotated[Any | None, typer.Option(metavar="HxW", parser=Grid.parse, help="Token rows and columns.")] = None
    res: Annotated[
        int | None, options.number(bounds.PIXELS, metavar="PIXELS", help="Image side instead of --grid.")
    ] = None
    branch_layer: Annotated[
        int | None, options.number(bounds.LAYER, metavar="M", help="Backbone block before which the branch starts.")
    ] = None
    branch_depth: Annotated[
        int | None, options.number(bounds.LAYERS, help="How many of the last layers.* are the branch. Default: 1.")
    ] = None
    norm_eps: Annotated[float | None, options.number(bounds.NORM_EPS, help="RMSNorm epsilon. Default: 1e-5.")] = None
    rope_base: Annotated[float | None, options.number(bounds.ROPE_BASE, help="Rotary base. Default: 10000.")] = None
    visual_token_offset: Annotated[
        int | None, options.number(bounds.TOKEN_ID, help="Emu3.5: id of the first visual token. Default: eoi + 1.")
    ] = None
    eol_token_id: Annotated[
        int | None, options.number(bounds.TOKEN_ID, help="Emu3.5: id of the token that ends a row of image tokens.")
    ] = None
    scales: Annotated[
        Any | None,
        typer.Option(metavar="A,B,..", parser=_sides, help="VAR: sides of its maps of tokens, the smallest first."),
    ] = None


@options.flattened
def command(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="Upstream weights, file or directory; a checkpoint with --to upstream."),
    ],
    out: options.Out,
    unsaid: Unsaid,
    to: Annotated[Target, typer.Option(help="flashar: write a checkpoint; upstream: write its layout.")] = "flashar",
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE|DIR", help="Image tokenizer to take along.")] = None,
    text_tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the text tokenizer; default: SRC.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to SRC's safetensors instead of copying them.")] = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Import upstream weights, or write the upstream layout back.

    Tensors are bit-exact both ways.
    """
    from flashar_cli.checkpoints import checkpoint
    from flashar_cli.checkpoints.convert import convert, refuse_link
    from flashar_cli.families.base import ConvertOptions
    from flashar_cli.files.outputs import Output, check_outputs
    from flashar_cli.reporting.listing import summary

    wanted = ConvertOptions(**vars(unsaid))
    if to == "upstream":
        others = {"--tokenizer": tokenizer, "--text-tokenizer": text_tokenizer, "--link": link or None}
        useless = wanted.given() + [option for option, value in others.items() if value is not None]
        if useless:
            raise FlasharError(f"{', '.join(useless)} say how to read upstream files; drop them with --to upstream")
        written = [str(path) for path in _to_upstream(source, out, overwrite)]
        output.document({"written": written}) if json else output.result(f"wrote {', '.join(written)}")
        return
    inputs = {"SRC": source, "--tokenizer": tokenizer, "--text-tokenizer": text_tokenizer}
    check_outputs([Output("--out", out, checkpoint.CHECKPOINT)], inputs, overwrite)
    if link:
        refuse_link(source)
    new = convert(source, wanted, tokenizer, text_tokenizer)
    for line in new.notes:
        output.note(f"note: {line}")
    if link:
        output.note(f"note: {new.link(out, overwrite)} links to the files of {source}; don't change them")
    else:
        new.save(out, overwrite)
    if json:
        output.document({"written": [str(out)], "config": read_config(out).model_dump(mode="json")})
    else:
        output.result(f"wrote {out}: {summary(new.config)}")


def _to_upstream(source: Path, out: Path, overwrite: bool) -> list[Path]:
    """``out`` is a .pt or .safetensors file for the model alone, or a directory for model.pt and vq.pt."""
    import torch

    from flashar_cli.checkpoints import checkpoint, hub
    from flashar_cli.checkpoints.convert import export, write_upstream
    from flashar_cli.files.kinds import UPSTREAM_PICKLE, UPSTREAM_SAFETENSORS
    from flashar_cli.files.outputs import Output, check_outputs

    as_file = out.suffix in (".pt", ".pth", ".safetensors")
    paths = [out] if as_file else [out / "model.pt", out / "vq.pt"]
    kind = UPSTREAM_SAFETENSORS if out.suffix == ".safetensors" else UPSTREAM_PICKLE
    check_outputs([Output("--out", path, kind) for path in paths], {"SRC": hub.local_path(str(source))}, overwrite)
    model, tokenizer = export(checkpoint.load(hub.resolve(str(source)), torch.device("cpu"), vq_dtype=None))
    states = [model] if as_file or tokenizer is None else [model, tokenizer]
    files = dict(zip(paths, states, strict=False))
    write_upstream(files)
    return list(files)
