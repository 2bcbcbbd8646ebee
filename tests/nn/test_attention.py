from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import attend, attention_kernels, check_backend, flex_takes
from flashar_cli.nn.masks import order_block_mask, order_mask, sequence_ranks
from tests.tiny_models import build_model, random_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_kv_heads", (4, 2))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_backend_gives_the_same(num_kv_heads):
    order = Grid(3, 5).diagonal()
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 16, 16) for heads in (4, num_kv_heads, num_kv_heads))
    mask = order_mask(order, 1, CPU)
    expected = attend(q, k, v, mask, "eager")
    torch.testing.assert_close(attend(q, k, v, mask, "sdpa"), expected)
    blocks = order_block_mask(sequence_ranks(order, 1, CPU), None)
    torch.testing.assert_close(attend(q, k, v, blocks, "flex"), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_model_predicts_alike_with_flex():
    model = build_model(random_config(3, 5, tokenizer=False)).requires_grad_(False)
    logits = []
    for backend in ("sdpa", "flex"):
        model.set_attention(backend)
        logits += [_predict(model, order) for order in (model.config.order_grid.diagonal(), Grid(3, 5).raster())]
    torch.testing.assert_close(logits[:2], logits[2:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on CUDA only")
def test_a_model_trains_alike_with_flex():
    config = random_config(3, 5, tokenizer=False)
    model = build_model(config).cuda().train()
    gradients = []
    for backend in ("sdpa", "flex"):
        model.set_attention(backend)
        model.zero_grad()
        _predict(model, config.order_grid.diagonal()).square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def _predict(model, order):
    tokens = torch.arange(30, device=model.device).reshape(2, 15) % 32
    return model(tokens, Conditions(labels=torch.tensor([1, 2], device=model.device)), order).logits


def test_flex_is_refused_where_it_cannot_train():
    with pytest.raises(FlasharError, match="CUDA only"):
        check_backend("flex", CPU, 64)
    with pytest.raises(FlasharError, match="not 100"):
        check_backend("flex", torch.device("cuda"), 100)
    check_backend("sdpa", CPU, 100)
    assert [size for size in (8, 16, 64, 100, 128) if flex_takes(size)] == [16, 64, 128]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_scores_are_scaled_as_asked():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 16).unbind()
    expected = (0.7 * q @ k.mT).softmax(dim=-1) @ v
    for backend in ("sdpa", "eager"):
        torch.testing.assert_close(attend(q, k, v, None, backend, 0.7), expected)
    blocks = order_block_mask(torch.zeros(16, dtype=torch.int64), None)
    torch.testing.assert_close(attend(q, k, v, blocks, "flex", 0.7), expected)


def test_a_mask_that_is_added_is_one_that_lets_attend():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 3, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    keys = torch.rand(2, 1, 1, 9) < 0.7
    keys[..., -1] = True
    added = torch.zeros(2, 1, 1, 9).masked_fill(~keys, -torch.inf)
    for backend in ("sdpa", "eager"):
        torch.testing.assert_close(attend(q, k, v, added, backend), attend(q, k, v, keys, backend))


def test_decoding_kernels_leave_cudnn_out_and_are_put_back():
    before = sdpa_state()
    with attention_kernels():
        assert sdpa_state() == {**before, "cudnn": False, "flash": True, "mem_efficient": True, "math": True}
        with attention_kernels([SDPBackend.MATH]):
            assert sdpa_state()["math"] and sum(sdpa_state().values()) == 1
    assert sdpa_state() == before


def sdpa_state():
    kinds = ("cudnn", "flash", "mem_efficient", "math")
    return {kind: getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in kinds}
