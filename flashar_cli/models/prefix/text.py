"""Prefix tokens from text tokens.

Letters: B batch, P prefix tokens, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashar_cli.config import TextPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix.base import Conditions, Prefix

EXAMPLE_LENGTH = 64


class TextEmbedder(Prefix):
    """An embedding of text tokens. Conditions: ``ids`` and ``uncond_ids`` int64 [B, P] and their masks ``mask`` and
    ``uncond_mask`` bool [B, P], left-padded.
    """

    masks_keys = True

    def __init__(self, config: TextPrefix, dim: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, dim)

    def check(self, conditions: Conditions) -> None:
        tensors = [conditions.tensors.get(name) for name in ("ids", "mask", "uncond_ids", "uncond_mask")]
        if any(tensor is None for tensor in tensors):
            raise FlasharError("this model is made for prompts; pass prompts or their token ids, not labels")
        shapes = {tuple(tensor.shape) for tensor in tensors if tensor is not None}
        if len(shapes) > 1 or len(next(iter(shapes))) != 2:
            raise FlasharError(f"token ids and masks have shapes {sorted(shapes)}; expected [B, P] for all of them")
        length = self.length(conditions)
        if not 1 <= length <= self.config.max_length:
            raise FlasharError(
                f"a prompt has {length} tokens; this model takes 1 to {self.config.max_length}; shorten it"
            )
        for name in ("ids", "uncond_ids"):
            ids = conditions.tensors[name]
            outside = ids[(ids < 0) | (ids >= self.config.vocab_size)]
            if len(outside):
                raise FlasharError(
                    f"text token {int(outside[0])} is out of range; expected 0..{self.config.vocab_size - 1}"
                )
        for name in ("mask", "uncond_mask"):
            mask = conditions.tensors[name]
            if not bool(mask[:, -1].all()) or bool((mask[:, 1:] < mask[:, :-1]).any()):
                raise FlasharError("a prompt's mask is not left-padded; expected 0s, then 1s up to the last position")

    def length(self, conditions: Conditions) -> int:
        return conditions.tensors["ids"].shape[1]

    def blank(self, batch: int, length: int) -> Conditions:
        device = self.embedding.weight.device
        ids = torch.full((batch, length), self.config.pad_id, device=device)
        mask = torch.ones(batch, length, dtype=torch.bool, device=device)
        return Conditions(ids=ids, mask=mask, uncond_ids=ids.clone(), uncond_mask=mask.clone())

    def example(self, batch: int, seed: int) -> Conditions:
        """Random tokens, the same number for each image."""
        generator = torch.Generator().manual_seed(seed)
        length = min(EXAMPLE_LENGTH, self.config.max_length)
        ids = torch.randint(self.config.vocab_size, (batch, length), generator=generator)
        mask = torch.ones(batch, length, dtype=torch.bool)
        return Conditions(ids=ids, mask=mask, uncond_ids=unconditional(ids, self.config), uncond_mask=mask)

    @property
    def line_end(self) -> Tensor | None:
        return None if self.config.line_end is None else self.embedding.weight[self.config.line_end]

    def common_starts(self, conditions: Conditions) -> Tensor | None:
        # Kept for parity: lxazjk/Emu3.5-FlashAR flashar/model/modeling_emu_flashar.py generate pads the shorter prompt
        # of a guidance pair, and places the image after the padding.
        lengths = [conditions.tensors[name].sum(dim=1) for name in ("mask", "uncond_mask")]
        return torch.maximum(*lengths)

    def valid(self, conditions: Conditions, drop: Tensor) -> Tensor:
        return torch.where(drop[:, None], conditions.tensors["uncond_mask"], conditions.tensors["mask"])

    def forward(self, conditions: Conditions, drop: Tensor) -> Tensor:
        ids = torch.where(drop[:, None], conditions.tensors["uncond_ids"], conditions.tensors["ids"])
        return self.embedding(ids)


def unconditional(ids: Tensor, config: TextPrefix) -> Tensor:
    """The unconditional form of prompts, int64 [B, P]: all ids but the kept ones are padding."""
    keeps = torch.isin(ids, torch.tensor(config.kept, dtype=ids.dtype, device=ids.device))
    return torch.where(keeps, ids, config.pad_id)


def left_padded(prompts: list[list[int]], pad_id: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, P] and mask bool [B, P] of prompts, each padded on the left to the longest or to ``length``."""
    length = max(map(len, prompts)) if length is None else length
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[row, length - len(prompt) :] = True
    return ids, mask
