"""Sample sheets: images of either decoder with the same conditions, random numbers and settings.

Letters: B images, h and w their sides in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.config import RasterConfig
from flashar_cli.data.conditions import conditions_of
from flashar_cli.data.decode import decode
from flashar_cli.data.images import contact_sheet, write_png
from flashar_cli.data.tokens import TokenSet
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.images import Request, generate_tokens
from flashar_cli.errors import FlasharError
from flashar_cli.inputs.reading import read_bytes
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.tokenizers import ImageTokenizer
from flashar_cli.tokenizers.pixels import to_uint8

COLUMNS, GAP = 10, 2


def subjects(config: RasterConfig, validation: TokenSet, count: int) -> tuple[Conditions, list[str]]:
    """Conditions of ``count`` sample images, and their names; fewer where there are fewer validation images."""
    return conditions_of(config).examples(validation.subjects, count)


def draw_samples(
    model: FlasharModel, tokenizer: ImageTokenizer, decoder: str, conditions: Conditions, batch_size: int, seed: int
) -> NDArray[np.uint8]:
    """uint8 [B, h, w, 3] by the decoder of this name, at the checkpoint's generation defaults.

    Image k depends on weights, decoder, seed, its condition and k alone.
    """
    model.eval()
    config, engine = model.config, Engine(model, tokenizer)
    request = Request(
        decoder=choose_decoder(config, decoder),
        conditions=conditions,
        num_images=len(conditions),
        sampling=config.generation,
        grid=config.order_grid,
        seed=seed,
        batch_size=batch_size,
    )
    # Where trained weights are wider than those of the backbone, products are computed in its dtype.
    autocast = torch.autocast(model.device.type, model.dtype, enabled=model.dtype != torch.float32)
    with torch.inference_mode(), autocast:
        return np.concatenate([to_uint8(engine.pixels(tokens)) for tokens in generate_tokens(engine, request)])


def write_sheet(path: Path, images: NDArray[np.uint8], settings: dict[str, Any]) -> None:
    """Writes a contact sheet with ten images a row."""
    write_png(path, contact_sheet(images, columns=COLUMNS, gap=GAP), settings)


def read_sheet(path: Path, config: RasterConfig, count: int) -> NDArray[np.uint8]:
    """The first ``count`` images, uint8 [B, h, w, 3], of a sheet that ``write_sheet`` wrote for this model.

    Raises FlasharError for a missing, damaged or smaller image.
    """
    if config.tokenizer is None:
        raise FlasharError(f"{path} can't be of a model without a tokenizer, which makes no images")
    height, width = (side * config.tokenizer.downsample for side in (config.grid.height, config.grid.width))
    sheet = np.asarray(decode(read_bytes(path)))
    places = [(GAP + (k // COLUMNS) * (height + GAP), GAP + (k % COLUMNS) * (width + GAP)) for k in range(count)]
    bottom, right = (max(place[axis] for place in places) + side for axis, side in enumerate((height, width)))
    if sheet.shape[0] < bottom or sheet.shape[1] < right:
        raise FlasharError(f"{path} is {sheet.shape[1]} x {sheet.shape[0]} pixels, too small for {count} samples")
    return np.stack([sheet[top : top + height, left : left + width] for top, left in places])
