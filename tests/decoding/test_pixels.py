"""Which precision, how many at once, and compiled or not; the images are tested with the tokenizer."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from flashar_cli.decoding import pixels
from flashar_cli.decoding.pixels import PixelDecoder, pixel_dtype
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.inference import InferenceDecoder
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.tiny_models import TINY_VQ

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def tiny_tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(TINY_VQ).eval()


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pixels_are_float32_but_for_small_models_on_cuda(model_dtype: torch.dtype) -> None:
    assert pixel_dtype(CPU, model_dtype) == torch.float32
    assert pixel_dtype(CUDA, model_dtype) == (torch.float32 if model_dtype == torch.float32 else torch.bfloat16)
    assert PixelDecoder(tiny_tokenizer(), model_dtype).dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "batch", "grid", "num_parts"),
    [
        ("cuda", 64, (16, 16), 1),
        ("cuda", 65, (16, 16), 2),
        ("cuda", 500, (32, 32), 8),
        ("cpu", 3, (64, 64), 3),  # 256x256 pixels each
        ("cpu", 3, (16, 16), 1),  # 64x64
        ("cpu", 33, (16, 16), 3),
        ("cpu", 2, (128, 128), 2),
        ("cpu", 0, (16, 16), 1),
    ],
)
def test_a_batch_is_decoded_in_parts(device: str, batch: int, grid: tuple[int, int], num_parts: int) -> None:
    decoder = PixelDecoder(tiny_tokenizer())
    decoder.device = torch.device(device)
    assert decoder.num_parts(batch, Grid(*grid)) == num_parts


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_parts_are_bounded_and_in_order(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, tokens, sizes = tiny_tokenizer(), torch.randint(32, (7, 3, 5)), []
    monkeypatch.setattr(pixels, "MAX_PIXELS_ON_CPU", at_once * 12 * 20)
    own = InferenceDecoder.forward
    monkeypatch.setattr(InferenceDecoder, "forward", lambda self, part: sizes.append(len(part)) or own(self, part))
    images = PixelDecoder(tokenizer)(tokens)
    assert max(sizes) <= at_once and sum(sizes) == 7
    assert images.dtype == torch.float32 and not images.requires_grad
    torch.testing.assert_close(images, tokenizer.decode(tokens), rtol=0, atol=1e-5)


def test_compiled_images_are_the_same_and_of_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced only, which takes no seconds; a break of the graph would be an error."""
    torch._dynamo.reset()
    settings: list[dict[str, object]] = []
    compile_ = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda module, **given: settings.append(given) or compile_(module, **given))
    decoder, tokens = PixelDecoder(tiny_tokenizer()), torch.randint(32, (2, 3, 5))
    assert torch.equal(decoder.compiled(tokens), decoder(tokens))
    assert settings == [{"fullgraph": True}]
    torch._dynamo.reset()
