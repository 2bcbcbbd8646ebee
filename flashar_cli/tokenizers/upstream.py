"""What a published LlamaGen tokenizer is, read from the shapes of its state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import ValidationError

from flashar_cli.config import VQConfig, explain
from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.vq import NORM_GROUPS, VQTokenizer

# A usage statistic of upstream training and its length: no parameter, but upstream's strict loading wants it back
# (upstream: vq_model.py VectorQuantizer).
STATISTICS = {"quantize.codebook_used": 65536}
LISTED = 12
Shapes = Mapping[str, Sequence[int]]


def config_from_state(shapes: Shapes) -> VQConfig:
    """Every config field from the names and shapes of an upstream tokenizer's state dict.

    ``quantize.codebook_used`` may be present and is ignored. Raises FlasharError, in one line, with every key that
    is missing, foreign or of another shape than the derived config has.
    """
    try:
        config = _derive(shapes)
    except ValidationError as error:
        raise FlasharError(f"not a LlamaGen tokenizer: {explain(error)}") from None
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in VQTokenizer(config).state_dict().items()}
    problems = _differences(expected, shapes)
    if problems:
        raise FlasharError(f"not a LlamaGen tokenizer: {'; '.join(problems)}; expected the state dict of a VQ model")
    return config


def _derive(shapes: Shapes) -> VQConfig:
    weights = {
        "quantize.embedding.weight": 2,
        "encoder.conv_in.weight": 4,
        "encoder.conv_out.weight": 4,
        "encoder.conv_blocks.0.res.0.conv1.weight": 4,
        "decoder.conv_blocks.0.res.0.conv1.weight": 4,
    }
    missing = [name for name in weights if name not in shapes]
    misshaped = [
        name for name, axes in weights.items() if name in shapes and (len(shapes[name]) != axes or 0 in shapes[name])
    ]
    if missing or misshaped:
        problems = [_listing("missing", missing), _listing("wrong shape", misshaped)]
        found = _listing("found", [name for name in shapes if name not in weights])
        raise FlasharError(f"not a LlamaGen tokenizer: {'; '.join(filter(None, [*problems, found]))}")
    channels = shapes["encoder.conv_in.weight"][0]
    if channels % NORM_GROUPS:
        raise FlasharError(f"not a LlamaGen tokenizer: its width {channels} is not a multiple of {NORM_GROUPS}")
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    return VQConfig(
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
        channels=channels,
        encoder_multipliers=_multipliers("encoder", shapes, channels),
        # upstream: decoder blocks run from the lowest resolution up, its multipliers are given from the highest down
        decoder_multipliers=_multipliers("decoder", shapes, channels)[::-1],
        num_res_blocks=_count("encoder.conv_blocks.0.res.", shapes),
        latent_channels=shapes["encoder.conv_out.weight"][0],
    )


def _multipliers(part: str, shapes: Shapes, channels: int) -> tuple[int, ...]:
    names = [
        f"{part}.conv_blocks.{level}.res.0.conv1.weight" for level in range(_count(f"{part}.conv_blocks.", shapes))
    ]
    missing = [name for name in names if name not in shapes]
    uneven = [
        f"{name} {list(shapes[name])}"
        for name in names
        if name in shapes and (not shapes[name] or not shapes[name][0] or shapes[name][0] % channels)
    ]
    if missing or uneven:
        problems = [_listing("missing", missing), _listing(f"width not a multiple of {channels}", uneven)]
        raise FlasharError(f"not a LlamaGen tokenizer: {'; '.join(filter(None, problems))}")
    return tuple(shapes[name][0] // channels for name in names)


def _count(prefix: str, shapes: Shapes) -> int:
    """How many numbers from 0 on follow ``prefix`` in the names. Raises FlasharError for a gap between them."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    absent = [number for number in map(str, range(len(found))) if number not in found]
    if absent:
        raise FlasharError(f"not a LlamaGen tokenizer: {len(found)} parts are {prefix}*, none {prefix}{absent[0]}")
    return len(found)


def _differences(expected: Shapes, got: Shapes) -> list[str]:
    missing = [name for name in expected if name not in got]
    foreign = [name for name in got if name not in expected and name not in STATISTICS]
    misshaped = [
        f"{name} {list(got[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in got and tuple(got[name]) != tuple(shape)
    ]
    lists = [_listing("missing", missing), _listing("unexpected", foreign), _listing("wrong shape", misshaped)]
    return [text for text in lists if text]


def _listing(label: str, names: list[str]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{label}: {', '.join(names[:LISTED])}{rest}"
