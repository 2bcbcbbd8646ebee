"""Sample sheets: the same pictures, that is conditions, noise and settings, by either decoder.

Letters: B pictures, h and w their sides in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.data.codes import CodeSet
from flashar_cli.data.decode import decode
from flashar_cli.data.pictures import contact_sheet, write_png
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.generate import generate_tokens
from flashar_cli.errors import FlasharError
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.reading import read_bytes
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.vq import VQTokenizer

COLUMNS, GAP = 10, 2
MOST_CLASSES = 40


def subjects(config: ModelConfig, validation: CodeSet, count: int) -> tuple[Conditions, list[str]]:
    """What ``count`` sample pictures show, and its names: classes in turn (of the first 40), or the captions of the
    first validation pictures, which may be fewer.
    """
    if isinstance(config.prefix, ClassPrefix):
        labels = [k % min(config.prefix.num_classes, MOST_CLASSES) for k in range(count)]
        names = config.class_names or [f"class {label}" for label in range(MOST_CLASSES)]
        return Conditions(labels=torch.tensor(labels)), [names[label] for label in labels]
    assert validation.captions is not None, "models without classes read captions"
    chosen = validation.captions.take(slice(0, count))
    return chosen.conditions(), [str(text) for text in chosen.texts]


def draw_samples(
    model: FlasharModel, tokenizer: VQTokenizer, decoder: str, conditions: Conditions, batch_size: int, seed: int
) -> NDArray[np.uint8]:
    """uint8 [B, h, w, 3] by ``raster`` or ``flashar``, at the checkpoint's generation defaults.

    Picture k depends on weights, decoder, seed, its condition and k alone.
    """
    model.eval()
    params = SamplingParams(**model.config.generation.model_dump())
    order = choose_order(model, decoder)
    engine, batches = Engine(model, tokenizer), []
    with torch.inference_mode():
        for codes in generate_tokens(model, conditions, len(conditions), order, params, seed, batch_size, engine):
            batches.append(to_uint8(engine.pixels(codes)))
    return np.concatenate(batches)


def write_sheet(path: Path, pictures: NDArray[np.uint8], settings: dict[str, Any]) -> None:
    """A contact sheet, ten pictures a row."""
    write_png(path, contact_sheet(pictures, columns=COLUMNS, gap=GAP), settings)


def read_sheet(path: Path, config: ModelConfig, count: int) -> NDArray[np.uint8]:
    """The first ``count`` pictures, uint8 [B, h, w, 3], of a sheet that ``write_sheet`` wrote for this model.

    Raises FlasharError for another picture, or none.
    """
    assert config.tokenizer is not None
    height, width = (side * config.tokenizer.downsample for side in (config.grid.height, config.grid.width))
    sheet = np.asarray(decode(read_bytes(path)))
    places = [(GAP + (k // COLUMNS) * (height + GAP), GAP + (k % COLUMNS) * (width + GAP)) for k in range(count)]
    bottom, right = (max(place[axis] for place in places) + side for axis, side in enumerate((height, width)))
    if sheet.shape[0] < bottom or sheet.shape[1] < right:
        raise FlasharError(f"{path} is {sheet.shape[1]} x {sheet.shape[0]} pixels, too small for {count} samples")
    return np.stack([sheet[top : top + height, left : left + width] for top, left in places])
