"""Caption features: what a caption-conditional LlamaGen reads in place of words.

Letters: B captions, P prefix positions, F text-feature dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flashar_cli.errors import FlasharError
from flashar_cli.models.prefix import Conditions
from flashar_cli.tensorfiles import WEIGHT_DTYPES, read_safetensors

TEXT_ENCODER = "google/flan-t5-xl"
FEATURES_KEY, MASK_KEY = "caption_features", "caption_mask"


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
    """flan-t5-xl, loaded once. Raises FlasharError where it is not at hand."""

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
        """Features bfloat16 [B, P, F] and mask int64 [B, P] of captions, padded on the right to ``length``.

        Source: FoundationVision/LlamaGen language/t5.py.
        """
        batch = self._tokenizer(
            [caption.strip().lower() for caption in captions],
            max_length=length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self._device)
        encoded = self._encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return encoded.last_hidden_state.cpu(), batch["attention_mask"].cpu()


def encode_captions(captions: Sequence[str], length: int, device: torch.device) -> Conditions:
    """flan-t5-xl features of captions, left-padded to ``length`` positions.

    Source: FoundationVision/LlamaGen autoregressive/sample/sample_t2i.py. Raises FlasharError where the text encoder is
    not at hand.
    """
    features, mask = CaptionEncoder(device)(captions, length)
    return Conditions(*(None, *left_pad(features.float(), mask.float())))


def left_pad(features_BPF: Tensor, mask_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Moves right-padded captions to the end of their positions."""
    lengths = mask_BP.sum(dim=1).long()
    rolled = [row.roll(len(row) - int(length), dims=0) for row, length in zip(features_BPF, lengths, strict=True)]
    return torch.stack(rolled), mask_BP.flip(1)
