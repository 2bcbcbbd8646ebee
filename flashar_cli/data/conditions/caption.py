"""Captions, which models read as features of the text encoder flan-t5-xl.

Letters: B captions, P prefix positions, F text-feature dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashar_cli.config import CaptionPrefix
from flashar_cli.data.conditions.base import ConditionKind, FeatureWriter, Given
from flashar_cli.data.conditions.features import CaptionFeatures, feature_bytes, open_features
from flashar_cli.data.sources.base import Wanted
from flashar_cli.errors import FlasharError
from flashar_cli.files.tensors import WEIGHT_DTYPES, read_safetensors
from flashar_cli.models.prefix import Conditions

FEATURES_KEY, MASK_KEY = "caption_features", "caption_mask"
TEXT_ENCODER = "google/flan-t5-xl"


class CaptionConditions(ConditionKind):
    """One caption an image; its features are in a file beside the tokens."""

    prefix: CaptionPrefix

    @property
    def wanted(self) -> Wanted:
        return Wanted(None)

    def parse(self, given: Given, device: torch.device) -> tuple[Conditions, list[str]]:
        require_captions(given)
        if not given.prompts:
            return encoded_captions(given)
        return encode_captions(given.prompts, self.prefix.length, device), given.prompts

    def read(self, values: list[Any], features: list[Path], where: Path) -> CaptionFeatures:
        if not features:
            raise FlasharError(f"{where} has captions without features; write them with `flashar encode`")
        texts = np.array(values, dtype=object)
        return open_features(features, texts, self.prefix.length, self.prefix.feature_dim)

    def features(self) -> dict[str, Any]:
        return {"text_encoder": TEXT_ENCODER} | self.prefix.model_dump(exclude={"kind"})

    def feature_writer(self, device: torch.device, batch_size: int) -> FeatureWriter:
        return partial(_feature_file, self.prefix, CaptionEncoder(device), batch_size)


def _feature_file(prefix: CaptionPrefix, encoder: CaptionEncoder, batch_size: int, texts: Sequence[str]) -> bytes:
    """The feature file of these captions. Raises FlasharError where the text encoder doesn't fit the model."""
    empty = torch.zeros(0, prefix.length, prefix.feature_dim, dtype=torch.bfloat16)
    parts = [(empty, empty[:, :, 0])]
    for start in range(0, len(texts), batch_size):
        parts.append(encoder(_normalised(texts[start : start + batch_size]), prefix.length))
        feature_dim = parts[-1][0].shape[2]
        if feature_dim != prefix.feature_dim:
            raise FlasharError(
                f"the text encoder gives {feature_dim} values a token; this model reads {prefix.feature_dim}"
            )
    return feature_bytes(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


def require_captions(given: Given) -> None:
    """Raises FlasharError unless either prompts or features are given, and for negative prompts."""
    given.require_one("caption-conditional", ("--prompt", "--caption-features"))
    given.refuse_negative("this model has learned features of its own for no caption")


def encoded_captions(given: Given) -> tuple[Conditions, list[str]]:
    """The captions of ``--caption-features``, and their names. Raises FlasharError for a wrong file."""
    conditions = read_caption_features(Path(str(given.caption_features)))
    return conditions, [f"caption {k}" for k in range(len(conditions))]


def read_caption_features(path: Path) -> Conditions:
    """Reads ``caption_features`` [B, P, F] and ``caption_mask`` [B, P] from a safetensors file."""
    where = f"--caption-features {path}"
    tensors = read_safetensors(path, where)
    missing = {FEATURES_KEY, MASK_KEY} - tensors.keys()
    if missing:
        raise FlasharError(
            f"{where} lacks {', '.join(sorted(missing))}; expected {FEATURES_KEY} [B, P, F] and {MASK_KEY} [B, P]"
        )
    features, mask = tensors[FEATURES_KEY], tensors[MASK_KEY]
    if features.ndim != 3 or mask.shape != features.shape[:2] or not features.numel():
        raise FlasharError(
            f"{where} has {FEATURES_KEY} {list(features.shape)} and {MASK_KEY} {list(mask.shape)}; "
            "expected [B, P, F] and [B, P]"
        )
    if features.dtype not in WEIGHT_DTYPES or mask.dtype.is_complex or not bool(torch.isfinite(features).all()):
        raise FlasharError(f"{where} has {FEATURES_KEY} of {features.dtype} or not finite; expected finite numbers")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise FlasharError(f"{where} has a {MASK_KEY} of other values than 0 and 1")
    return Conditions(features=features.float(), mask=mask.float())


class CaptionEncoder:
    """flan-t5-xl, loaded once. Raises FlasharError where it can't be loaded."""

    def __init__(self, device: torch.device) -> None:
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError:
            raise FlasharError(
                "captions need the transformers package; install it (generate also takes --caption-features)"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(TEXT_ENCODER)
            encoder: torch.nn.Module = T5EncoderModel.from_pretrained(TEXT_ENCODER, dtype=torch.bfloat16)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FlasharError(
                f"the text encoder {TEXT_ENCODER} can't be loaded ({reason}); put it into the Hugging Face cache "
                "(generate also takes --caption-features)"
            ) from None
        self._encoder = encoder.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Features bfloat16 [B, P, F] and mask int64 [B, P] of captions, padded on the right to ``length``."""
        batch = self._tokenizer(
            list(captions),
            max_length=length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        encoded = self._encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return encoded.last_hidden_state.cpu(), batch["attention_mask"].cpu()


def encode_captions(captions: Sequence[str], length: int, device: torch.device) -> Conditions:
    """flan-t5-xl features of captions, left-padded to ``length`` positions. Raises FlasharError as CaptionEncoder.

    Source: FoundationVision/LlamaGen autoregressive/sample/sample_t2i.py.
    """
    features, mask = CaptionEncoder(device)(_normalised(captions), length)
    features, mask = left_pad(features.float(), mask.float())
    return Conditions(features=features, mask=mask)


def _normalised(captions: Sequence[str]) -> list[str]:
    """Captions as LlamaGen's encoder gets them (FoundationVision/LlamaGen language/t5.py)."""
    return [caption.strip().lower() for caption in captions]


def left_pad(features_BPF: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Turns right padding into left padding."""
    lengths = mask_BP.sum(dim=1).long()
    rolled = [row.roll(len(row) - int(length), dims=0) for row, length in zip(features_BPF, lengths, strict=True)]
    return torch.stack(rolled), mask_BP.flip(1)
