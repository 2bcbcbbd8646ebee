"""Captions that a model reads as a sequence of its own: features of flan-t5-xl, as many as a caption has tokens.

Letters: B captions, P positions of the longest, F text-feature dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flashar_cli.config import CaptionMemory
from flashar_cli.data.conditions.base import ConditionKind, Given, Subjects
from flashar_cli.data.conditions.caption import CaptionEncoder, encoded_captions, require_captions
from flashar_cli.data.sources.base import Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions


class MemoryConditions(ConditionKind):
    """One caption an image, as it is written: neither stripped nor in lower case (FoundationVision/Infinity
    tools/run_infinity.py encode_prompt).
    """

    prefix: CaptionMemory

    @property
    def wanted(self) -> Wanted:
        return Wanted(None)

    def parse(self, given: Given, device: torch.device) -> tuple[Conditions, list[str]]:
        """Features [B, P, F] and mask [B, P] of the given captions, right-padded to the longest."""
        require_captions(given)
        if not given.prompts:
            return encoded_captions(given)
        features, mask = CaptionEncoder(device)(given.prompts, self.prefix.length)
        longest = int(mask.sum(dim=1).max())
        return Conditions(features=features[:, :longest].float(), mask=mask[:, :longest].float()), given.prompts

    def read(self, values: list[Any], features: list[Path], where: Path) -> Subjects:
        raise FlasharError(f"{where}: models that predict whole maps are not trained here")
