"""The config of a published LlamaGen tokenizer, read from the shapes of its state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from flashar_cli.config import VQConfig, explain
from flashar_cli.errors import FlasharError
from flashar_cli.files.tensors import describe_problems
from flashar_cli.tokenizers.vq import NORM_GROUPS

# A usage statistic of upstream training and its length. It is no parameter, but upstream's strict loading expects it
# (upstream: vq_model.py VectorQuantizer).
STATISTICS = {"quantize.codebook_used": 65536}
# The tensors that tell the config, and how many axes each has.
TELLING = {
    "quantize.embedding.weight": 2,
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "encoder.conv_blocks.0.res.0.conv1.weight": 4,
    "decoder.conv_blocks.0.res.0.conv1.weight": 4,
}
Shapes = Mapping[str, Sequence[int]]


def config_from_state(shapes: Shapes) -> VQConfig:
    """Every config field from the names and shapes of an upstream tokenizer's state dict. Whether its other tensors fit
    this config is not checked here. Raises FlasharError, in one line, where these give no config.
    """
    problems = [f"missing {name}" for name in TELLING if name not in shapes]
    for name in TELLING.keys() & shapes.keys():
        if len(shapes[name]) != TELLING[name] or 0 in shapes[name]:
            problems.append(f"{name} is {list(shapes[name])}, expected {TELLING[name]} axes")
    if problems:
        found = ", ".join([name for name in shapes if name not in TELLING][:8])
        raise _foreign(*sorted(problems), f"found {found or 'no others'}")
    channels = shapes["encoder.conv_in.weight"][0]
    if channels % NORM_GROUPS:
        raise _foreign(f"its width {channels} is not a multiple of {NORM_GROUPS}")
    codebook_size, codebook_dim = shapes["quantize.embedding.weight"]
    try:
        return VQConfig(
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
            channels=channels,
            encoder_multipliers=_multipliers("encoder", shapes, channels),
            # upstream: decoder blocks run from the lowest resolution up, its multipliers go from the highest down
            decoder_multipliers=_multipliers("decoder", shapes, channels)[::-1],
            num_res_blocks=_count("encoder.conv_blocks.0.res.", shapes),
            latent_channels=shapes["encoder.conv_out.weight"][0],
        )
    except ValidationError as error:
        raise _foreign(explain(error)) from None


def _multipliers(part: str, shapes: Shapes, channels: int) -> tuple[int, ...]:
    levels = range(_count(f"{part}.conv_blocks.", shapes))
    names = [f"{part}.conv_blocks.{level}.res.0.conv1.weight" for level in levels]
    problems = [f"missing {name}" for name in names if name not in shapes]
    for name in shapes.keys() & names:
        if not shapes[name] or not shapes[name][0] or shapes[name][0] % channels:
            problems.append(f"{name} is {list(shapes[name])}, its width not a multiple of {channels}")
    if problems:
        raise _foreign(*sorted(problems))
    return tuple(shapes[name][0] // channels for name in names)


def _count(prefix: str, shapes: Shapes) -> int:
    """How many numbers from 0 on follow ``prefix`` in the names. Raises FlasharError for a gap between them."""
    found = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    absent = [number for number in map(str, range(len(found))) if number not in found]
    if absent:
        raise _foreign(f"{len(found)} parts are {prefix}*, none {prefix}{absent[0]}")
    return len(found)


def _foreign(*problems: str) -> FlasharError:
    return FlasharError(f"not a LlamaGen tokenizer: {describe_problems(list(problems))}")
