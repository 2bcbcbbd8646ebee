"""Sample sheets: the same pictures, that is conditions, noise and settings, by either decoder.

Letters: B pictures, h and w their sides in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.data.pictures import contact_sheet, write_png
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.generate import generate_tokens
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.tokenizers.vq import VQTokenizer

COLUMNS, GAP = 10, 2
MOST_CLASSES = 40


def can_draw(config: ModelConfig) -> bool:
    """Whether pictures can be made: a tokenizer to decode with, and classes to choose from."""
    return config.tokenizer is not None and isinstance(config.prefix, ClassPrefix)


def sample_labels(config: ModelConfig, count: int) -> list[int]:
    """Classes in turn: picture k shows class k modulo their number (of the first 40)."""
    assert isinstance(config.prefix, ClassPrefix)
    return [k % min(config.prefix.num_classes, MOST_CLASSES) for k in range(count)]


def draw_samples(
    model: FlasharModel, tokenizer: VQTokenizer, decoder: str, count: int, batch_size: int, seed: int
) -> NDArray[np.uint8]:
    """uint8 [B, h, w, 3] by ``raster`` or ``flashar``, at the checkpoint's generation defaults.

    Picture k depends on weights, decoder, seed and k alone.
    """
    model.eval()
    conditions = Conditions(labels=torch.tensor(sample_labels(model.config, count)))
    params = SamplingParams(**model.config.generation.model_dump())
    order = choose_order(model, decoder)
    batches = []
    with torch.inference_mode():
        for codes in generate_tokens(model, conditions, count, order, params, seed, batch_size):
            batches.append(to_uint8(tokenizer.decode(codes)))
    return np.concatenate(batches)


def write_sheet(path: Path, pictures: NDArray[np.uint8], settings: dict[str, Any]) -> None:
    """A contact sheet, ten pictures a row."""
    write_png(path, contact_sheet(pictures, columns=COLUMNS, gap=GAP), settings)


def read_sheet(path: Path, config: ModelConfig, count: int) -> NDArray[np.uint8]:
    """The first ``count`` pictures, uint8 [B, h, w, 3], of a sheet that ``write_sheet`` wrote for this model."""
    assert config.tokenizer is not None
    height, width = (side * config.tokenizer.downsample for side in (config.grid.height, config.grid.width))
    with Image.open(path) as opened:
        sheet = np.asarray(opened.convert("RGB"))
    places = [(GAP + (k // COLUMNS) * (height + GAP), GAP + (k % COLUMNS) * (width + GAP)) for k in range(count)]
    return np.stack([sheet[top : top + height, left : left + width] for top, left in places])
