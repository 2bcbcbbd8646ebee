"""Tokens of all scales to a latent and back, against published numbers and against a slow reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flashar_cli.config import BSQConfig, MultiScaleVQConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.tokenizers.next_scale import ScaleQuantizer, build_quantizer
from flashar_cli.tokenizers.next_scale.vector import MultiScaleVQ
from tests.tokenizers.next_scale.published import NAMES, Published, assert_near
from tests.tokenizers.next_scale.reference import Reference, resized

VQ = MultiScaleVQConfig(codebook_size=23, codebook_dim=6, num_residuals=4)
BSQ = BSQConfig(num_bits=6)
SCHEDULES = (
    ((1, 1), (1, 2), (1, 3), (1, 5)),
    ((1, 1), (2, 1), (4, 1), (5, 1)),
    ((1, 1), (2, 2), (2, 4), (3, 5)),
    ((1, 1), (2, 1), (4, 2), (5, 3)),
    ((1, 1), (2, 2), (3, 3), (4, 4)),
    ((5, 4), (7, 9)),
    ((3, 2),),
)


@pytest.fixture(scope="module", params=NAMES)
def published(request) -> Published:
    return Published(request.param)


def test_published_tokens_are_summed_to_the_published_latents(published: Published) -> None:
    for expected in [*published.decoded, published.random, published.encoded]:
        latent = published.tokenizer.quantizer.latent(expected.tokens, expected.scales)
        assert_near(latent, expected.latent, 1e-5)


def test_the_model_sees_the_published_inputs(published: Published) -> None:
    quantizer, made = published.tokenizer.quantizer, published.random
    for index, expected in enumerate(published.inputs, start=1):
        latent = quantizer.latent(made.tokens[:index], made.scales)
        assert_near(published.patched(quantizer.resized(latent, made.scales[index])), expected, 1e-5)


def test_published_latents_have_the_published_tokens(published: Published) -> None:
    expected = published.encoded
    tokens = published.tokenizer.quantizer.search(published.features, expected.scales)
    assert all(torch.equal(*pair) for pair in zip(tokens, expected.tokens, strict=True))


def quantizer_of(config: MultiScaleVQConfig | BSQConfig) -> ScaleQuantizer:
    torch.manual_seed(0)
    return build_quantizer(config).eval()


def reference_of(quantizer: ScaleQuantizer, num_scales: int) -> Reference:
    if not isinstance(quantizer, MultiScaleVQ):
        return Reference(None)
    state = {name: tensor.double().numpy() for name, tensor in quantizer.state_dict().items()}
    # The nearest of 1/12, 13/36, 23/36, 11/12 to index / (num_scales - 1), without a tie.
    numbers = {1: [0], 2: [0, 3], 4: [0, 1, 2, 3]}[num_scales]
    convolutions = [(state[f"residuals.{number}.weight"], state[f"residuals.{number}.bias"]) for number in numbers]
    return Reference(state["embedding.weight"], convolutions)


@pytest.mark.parametrize("sizes", SCHEDULES)
@pytest.mark.parametrize("config", (VQ, BSQ), ids=["vq", "bsq"])
@torch.inference_mode()
def test_both_ways_as_in_float64(config: MultiScaleVQConfig | BSQConfig, sizes: tuple[tuple[int, int], ...]) -> None:
    quantizer, scales = quantizer_of(config), [Grid(*size) for size in sizes]
    reference = reference_of(quantizer, len(scales))
    features = torch.randn(1, 6, *sizes[-1])
    expected = reference.search(features[0].double().numpy(), scales)
    tokens = quantizer.search(features, scales)
    assert all(np.array_equal(found[0], each) for found, each in zip(tokens, expected, strict=True))
    latent = sum(reference.part(each, index, scales) for index, each in enumerate(expected))
    assert_near(quantizer.latent(tokens, scales)[0], torch.from_numpy(latent).float(), 1e-5)
    for scale in scales:
        seen = torch.from_numpy(resized(latent, scale, reference.to_next)).float()
        assert_near(quantizer.resized(quantizer.latent(tokens, scales), scale)[0], seen, 1e-5)


@pytest.mark.parametrize("config", (VQ, BSQ), ids=["vq", "bsq"])
@torch.inference_mode()
def test_the_first_scales_alone_are_the_first_parts_of_the_whole(config: MultiScaleVQConfig | BSQConfig) -> None:
    """Where a scale stands in the schedule does not follow from how many there are tokens of."""
    quantizer, scales = quantizer_of(config), [Grid(*size) for size in SCHEDULES[2]]
    tokens = quantizer.search(torch.randn(2, 6, 3, 5), scales)
    last = quantizer.contribution(quantizer.codes(tokens[3]), 3, scales)
    assert_near(quantizer.latent(tokens[:3], scales) + last, quantizer.latent(tokens, scales), 1e-6)
    assert quantizer.latent(tokens[:1], scales).shape == (2, 6, 3, 5)


@pytest.mark.parametrize("config", (VQ, BSQ), ids=["vq", "bsq"])
@torch.inference_mode()
def test_the_latent_is_float32_whatever_the_weights_are(config: MultiScaleVQConfig | BSQConfig) -> None:
    scales = [Grid(*size) for size in SCHEDULES[3]]
    quantizer = quantizer_of(config).bfloat16()
    features = torch.randn(1, 6, 5, 3)
    tokens = quantizer.search(features, scales)
    latent = quantizer.latent(tokens, scales)
    exact = quantizer_of(config)
    exact.load_state_dict({name: tensor.float() for name, tensor in quantizer.state_dict().items()})
    assert latent.dtype == torch.float32 and torch.equal(exact.latent(tokens, scales), latent)
    with torch.autocast("cpu", torch.bfloat16):
        again = exact.search(features, scales)
        assert all(torch.equal(*pair) for pair in zip(again, tokens, strict=True))
        assert torch.equal(exact.latent(tokens, scales), latent)
        assert quantizer.resized(latent, scales[1]).dtype == torch.float32


@pytest.mark.parametrize("config", (VQ, BSQ), ids=["vq", "bsq"])
def test_a_step_needs_no_data(config: MultiScaleVQConfig | BSQConfig) -> None:
    """So it can be recorded in a CUDA graph: no shape follows from values, and nothing waits for them."""
    scales = [Grid(*size) for size in SCHEDULES[2]]
    with FakeTensorMode():
        quantizer = build_quantizer(config)
        tokens = torch.zeros(2, 2, 2, *quantizer.token_axes, dtype=torch.int64)
        latent = torch.zeros(2, 6, 3, 5) + quantizer.contribution(quantizer.codes(tokens), 1, scales)
        assert quantizer.resized(latent, scales[2]).shape == (2, 6, 2, 4)
        assert quantizer.quantize(latent).shape == (2, 3, 5, *quantizer.token_axes)


@pytest.mark.parametrize("sizes", SCHEDULES)
def test_tokens_of_a_schedule_pass(sizes: tuple[tuple[int, int], ...]) -> None:
    scales = [Grid(*size) for size in sizes]
    for dtype in (torch.uint8, torch.int32, torch.int64):
        for quantizer in map(quantizer_of, (VQ, BSQ)):
            tokens = [torch.zeros(3, *size, *quantizer.token_axes, dtype=dtype) for size in sizes]
            for count in range(1, len(scales) + 1):
                quantizer.check_tokens(tokens[:count], scales)
                assert quantizer.latent(tokens[:count], scales).shape == (3, 6, *sizes[-1])


FIRST, SECOND = torch.zeros(2, 2, 3, dtype=torch.int64), torch.zeros(2, 4, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("config", "tokens", "message"),
    (
        (VQ, [], "tokens of 0 scales; expected 1 .. 2"),
        (VQ, [FIRST, SECOND, SECOND], "tokens of 3 scales; expected 1 .. 2"),
        (VQ, [FIRST, SECOND.float()], r"scale 1 are torch.float32 \(2, 4, 5\); expected integers \(2, 4, 5\)"),
        (VQ, [FIRST.mT], r"scale 0 are torch.int64 \(2, 3, 2\); expected integers \(2, 2, 3\)"),
        (VQ, [FIRST, SECOND[:1]], r"scale 1 are torch.int64 \(1, 4, 5\); expected integers \(2, 4, 5\)"),
        (VQ, [FIRST.flatten(1)], r"scale 0 are torch.int64 \(2, 6\)"),
        (VQ, [FIRST[0, 0, 0]], r"scale 0 are torch.int64 \(\)"),
        (VQ, [FIRST, SECOND - 1], r"range over -1 .. -1; this tokenizer has 0 .. 22"),
        (VQ, [FIRST + 23], "range over 23 .. 23"),
        (BSQ, [FIRST], r"scale 0 are torch.int64 \(2, 2, 3\); expected integers \(2, 2, 3, 6\)"),
        (BSQ, [FIRST[..., None].expand(-1, -1, -1, 5)], r"expected integers \(2, 2, 3, 6\)"),
        (BSQ, [FIRST[..., None].expand(-1, -1, -1, 6) + 2], "range over 2 .. 2; this tokenizer has 0 .. 1"),
    ),
)
def test_other_tokens_are_refused(config: MultiScaleVQConfig | BSQConfig, tokens: list, message: str) -> None:
    with pytest.raises(FlasharError, match=message) as error:
        quantizer_of(config).check_tokens(tokens, [Grid(2, 3), Grid(4, 5)])
    assert "\n" not in str(error.value)
