"""Token grids in files of ``torch.save``, as the authors of FlashAR store those of Emu3.5.

Source: lxazjk/Emu3.5-FlashAR flashar/data/pretokenize_tar.py, which saves a whole-number tensor [H, W] for an image,
and its caption beside it. The values are codes of the image tokenizer; the offset of visual tokens in the model's
vocabulary is added later, in training.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.errors import FlasharError
from flashar_cli.files.tensors import read_tensor
from flashar_cli.grid import Grid

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)


def read_token_grid(content: bytes, grid: Grid, vocab_size: int) -> NDArray[np.int32]:
    """Tokens int32 [H, W]. Raises FlasharError for what is no tensor of whole numbers, for another grid, and for tokens
    outside 0 .. ``vocab_size`` - 1.
    """
    tensor = read_tensor(content)
    shape = (grid.height, grid.width)
    if tensor.dtype not in WHOLE or tuple(tensor.shape) != shape:
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise FlasharError(f"it holds {found}; expected whole numbers {list(shape)}, this model's grid")
    values = tensor.to(torch.int64).numpy()
    if not 0 <= values.min() <= values.max() < vocab_size:
        raise FlasharError(
            f"its tokens are {values.min()}..{values.max()}; expected 0..{vocab_size - 1}, codes of the image "
            "tokenizer without the offset that they have in a vocabulary with text"
        )
    return values.astype(np.int32)
