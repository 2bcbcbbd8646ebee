"""The decoder without gradients against published images and against the one that is trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flashar_cli.tokenizers import inference
from flashar_cli.tokenizers.inference import CpuConvolution, InferenceDecoder, has_winograd
from flashar_cli.tokenizers.upstream import config_from_state
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.parity.fixtures import read_fixture
from tests.tokenizers import test_vq

needs_winograd = pytest.mark.skipif(not torch._nnpack_available(), reason="PyTorch has no NNPACK on this processor")


def small_tokenizer() -> VQTokenizer:
    return test_vq.small_tokenizer(test_vq.SMALL.model_copy(update={"decoder_multipliers": (1, 2)}))


@pytest.fixture(params=("direct", pytest.param("winograd", marks=needs_winograd)))
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One algorithm for every convolution, whichever is the faster one on this machine."""
    everywhere = request.param == "winograd"
    capability = torch.backends.cpu.get_cpu_capability() if everywhere else "none"
    monkeypatch.setattr(inference, "WINOGRAD_CAPABILITY", capability)
    monkeypatch.setattr(inference, "MIN_CHANNELS", 1)
    monkeypatch.setattr(inference, "MIN_POSITIONS", 1)
    assert has_winograd() == everywhere
    return request.param


@pytest.mark.parametrize("name", ["llamagen_vq16", "llamagen_vq8"])
@torch.inference_mode()
def test_published_tokenizers_give_the_same_images(name: str, algorithm: str) -> None:
    fixture = read_fixture(name)
    with torch.device("meta"):
        tokenizer = VQTokenizer(config_from_state(fixture.meta["state_dict_shapes"])).eval()
    tokenizer.load_state_dict(fixture.upstream_state(), assign=True)
    images = InferenceDecoder(tokenizer)(fixture.tensors["random_codes"])
    torch.testing.assert_close(images, fixture.tensors["decoded"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 5, 1), (2, 1, 5)])
@torch.inference_mode()
def test_images_are_those_of_the_trained_decoder(shape: tuple[int, int, int], algorithm: str) -> None:
    tokenizer, tokens = small_tokenizer(), torch.randint(20, shape)
    state = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    decoder = InferenceDecoder(tokenizer)
    for _ in range(2):
        torch.testing.assert_close(decoder(tokens), tokenizer.decode(tokens), rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tokenizer.state_dict().items())


def test_float32_weights_on_a_cpu_are_held_once() -> None:
    tokenizer = small_tokenizer()
    own = {tensor.data_ptr() for tensor in tokenizer.decoder.parameters()}
    assert {tensor.data_ptr() for tensor in InferenceDecoder(tokenizer).parameters()} == own
    cast = InferenceDecoder(tokenizer, torch.bfloat16)
    assert own.isdisjoint(tensor.data_ptr() for tensor in cast.parameters())
    assert all(tensor.dtype == torch.float32 for tensor in tokenizer.parameters())


@torch.inference_mode()
def test_bfloat16_is_near_and_maps_stay_channels_last() -> None:
    tokenizer, tokens = small_tokenizer(), torch.randint(20, (2, 3, 5))
    decoder, layouts = InferenceDecoder(tokenizer, torch.bfloat16), []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        layouts.append(output.is_contiguous(memory_format=torch.channels_last) and output.dtype == torch.bfloat16)

    for module in decoder.decoder.modules():
        module.register_forward_hook(note)
    images = decoder(tokens)
    assert len(layouts) > 20 and all(layouts)
    expected = tokenizer.decode(tokens)
    assert (images.float() - expected).abs().max() < 0.1 * expected.std()


@needs_winograd
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [127, 128])
@pytest.mark.parametrize("side", [31, 32])
@torch.inference_mode()
def test_winograd_is_for_large_maps_of_one_image(
    batch: int, channels: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "WINOGRAD_CAPABILITY", torch.backends.cpu.get_cpu_capability())
    calls, own = [], torch._nnpack_spatial_convolution
    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", lambda *args: calls.append(1) or own(*args))
    conv = torch.nn.Conv2d(channels, 8, 3, padding=1)
    features = torch.randn(batch, channels, side, side)
    expected = F.conv2d(features.double(), conv.weight.double(), conv.bias.double(), padding=1)
    torch.testing.assert_close(CpuConvolution(conv)(features).double(), expected, rtol=0, atol=1e-4)
    assert len(calls) == (batch == 1 and channels == 128 and side == 32)
    monkeypatch.setattr(inference, "WINOGRAD_CAPABILITY", "another")
    CpuConvolution(conv)(features)
    assert len(calls) <= 1
