"""What a CUDA graph asks of the decode path, checked without a GPU: no wait for the device, no shape that depends on
data, no table made on the way, and buffers that stay where they are.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashar_cli.config import Sampling
from flashar_cli.decoding.forwards import Forwards, joined_products
from flashar_cli.decoding.pixels import PixelDecoder
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.quantize import SCHEMES, quantize_model
from flashar_cli.machine.launches import OperatorCounter
from flashar_cli.nn.sampling import uniform_table
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.decoding.plain import decode, decode_with, plan_of
from tests.decoding.test_decoder import make_conditions, make_model
from tests.tiny_models import TINY_VQ

# The host learns a value, or a shape follows from values.
WAITING = {"_local_scalar_dense", "item", "equal", "is_nonzero"}
BY_VALUE = {"nonzero", "nonzero_static", "masked_select", "unique_dim", "_unique2", "bincount", "repeat_interleave"}
# A tensor made from host data: under capture its copy would be of memory that is gone at replay.
FROM_HOST = {"lift_fresh", "lift_fresh_copy"}
REFUSED = WAITING | BY_VALUE | FROM_HOST

SETTINGS = (
    Sampling(),
    Sampling(cfg_scale=2.0, temperature=0),
    Sampling(cfg_scale=2.0, temperature=0.8, top_k=5, top_p=0.9, cfg_interval=(0.0, 0.5)),
)


class GraphSafe(TorchDispatchMode):
    """Refuses what can't be captured, and tensors on any device but one."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.num_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in REFUSED:
            raise AssertionError(f"{func} on the decode path")
        if name.startswith("index") and any(_is_mask(leaf) for leaf in tree_leaves(args[1:])):
            raise AssertionError(f"{func} by a mask on the decode path")
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != self.device:
                raise AssertionError(f"{func} touches {leaf.device}")
        self.num_calls += 1
        return result


def _is_mask(leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool


@pytest.fixture(params=("raster", "diagonal"))
def order_name(request):
    return request.param


def make_plan(model, order_name: str, batch: int, params: Sampling) -> DecodePlan:
    return plan_of(model, batch, getattr(model.config.order_grid, order_name)(), params)


@torch.inference_mode()
def run_guarded(plan: DecodePlan, device: str) -> int:
    with GraphSafe(device) as guard:
        plan.sample(0, plan.prefix())
        plan.advance(1, plan.order.num_steps)
        plan.tokens()
    return guard.num_calls


@pytest.mark.parametrize("params", SETTINGS, ids=("plain", "greedy", "filtered"))
@pytest.mark.parametrize("gate", ("hidden", "logits", "scalar", "mean"))
@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
def test_the_decode_path_is_graph_safe(order_name, params, gate, captions):
    model = make_model(3, 5, gate, captions)
    plan = make_plan(model, order_name, 2, params)
    plan.load(make_conditions(2, captions), params, torch.rand(2, 15))
    assert run_guarded(plan, "cpu") > 100


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantised_layers_are_graph_safe(order_name, scheme):
    pytest.importorskip("torchao")
    model, params = make_model(3, 5, "hidden"), SETTINGS[1]
    quantize_model(model, scheme)
    plan = make_plan(model, order_name, 2, params)
    plan.load(make_conditions(2, False), params, torch.rand(2, 15))
    assert run_guarded(plan, "cpu") > 100


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
def test_the_decode_path_never_touches_another_device(order_name, captions):
    """On ``meta`` there are no values to wait for, and the host's tensors are on another device."""
    model, params = make_model(3, 5, "hidden", captions).to("meta"), SETTINGS[2]
    assert run_guarded(make_plan(model, order_name, 2, params), "meta") > 100


@pytest.mark.parametrize("device", ("cpu", "meta"))
@torch.inference_mode()
def test_token_decode_is_graph_safe(device):
    """It is captured too."""
    tokenizer = VQTokenizer(TINY_VQ).eval().to(device)
    tokens = torch.zeros(2, 3, 5, dtype=torch.int64, device=device)
    to_pixels = PixelDecoder(tokenizer)
    to_pixels(tokens)  # what is made once is made before a capture
    with GraphSafe(device) as guard:
        to_pixels(tokens)
    assert guard.num_calls > 30
    if device == "cpu":
        with pytest.raises(AssertionError, match="on the decode path"), GraphSafe(device):
            tokenizer.decode(tokens)


# A step's operators on a CPU, views left out: about a GPU's kernels. In float32 a block has 14: norms 2, products 4
# (qkv, out, w1 with w3, w2), rotation, keys, values, attention, sums 2, SiLU and its product. In bfloat16 two casts
# more, of what is rotated.
BLOCK_OPERATORS = {torch.float32: 14, torch.bfloat16: 16}
# Tokens for both rows, embedding, norms 2, sources 2, heads 2, gate 4, its choice and sigmoid, fusion, guidance;
# softmax, cumulative sum, threshold, search, store. In bfloat16 two casts more, of both heads' logits.
OTHER_OPERATORS = {torch.float32: 21, torch.bfloat16: 23}


@pytest.mark.parametrize("dtype", BLOCK_OPERATORS, ids=str)
@torch.inference_mode()
def test_a_step_launches_no_more_than_it_must(dtype):
    counts = []
    for depth in (1, 2):
        model, params = make_model(4, 4, "hidden", depth=depth).to(dtype), Sampling(cfg_scale=2.0)
        plan = make_plan(model, "diagonal", 2, params)
        plan.load(make_conditions(2, False), params, torch.rand(2, 16))
        plan.sample(0, plan.prefix())
        with Forwards(joined_products(model)).active():
            plan.advance(1, 3)
            with OperatorCounter() as counter:
                plan.advance(3, 4)
        counts.append(counter.count)
    per_block = counts[1] - counts[0]
    assert per_block == BLOCK_OPERATORS[dtype]
    assert counts[0] - 3 * per_block == OTHER_OPERATORS[dtype]


def test_the_guard_refuses():
    values = torch.tensor([1.0, 0.0])
    positive = values > 0
    waiting = (lambda: values.sum().item(), lambda: bool(positive[0]), values.nonzero, lambda: values[positive])
    from_host = (lambda: torch.tensor([1]), lambda: values[[0, 1]])
    for bad in (*waiting, *from_host):
        with pytest.raises(AssertionError), GraphSafe("cpu"):
            bad()
    with pytest.raises(AssertionError), GraphSafe("meta"):
        torch.zeros(2, device="meta").copy_(values)
    with GraphSafe("cpu"):
        values.add(1).index_select(0, positive.long())


def test_buffers_stay_over_steps_and_images(order_name):
    model, params = make_model(4, 4, "hidden", captions=True), SETTINGS[2]
    plan = make_plan(model, order_name, 2, params)
    addresses = [buffer.data_ptr() for buffer in plan.buffers()]
    seen = []
    for image in range(2):
        uniform = uniform_table(0, 2 * image, 2, 16)
        decode_with(
            plan, make_conditions(2, True), params, uniform, lambda *_: seen.append(plan.cache.memory.data_ptr())
        )
    assert [buffer.data_ptr() for buffer in plan.buffers()] == addresses
    assert set(seen) == {plan.cache.memory.data_ptr()}


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
def test_a_plan_that_was_used_before_decodes_the_same(order_name, captions):
    model = make_model(4, 4, "hidden", captions)
    conditions = make_conditions(3, captions)
    hot = Sampling(cfg_scale=3.0, temperature=1.5, top_p=0.99, cfg_interval=(0.3, 1.0))
    cool = Sampling(cfg_scale=1.5, temperature=0.7, top_p=0.8)
    plan = make_plan(model, order_name, 3, hot)
    first = decode_with(plan, conditions[torch.tensor([2, 0, 1])], hot, uniform_table(1, 0, 3, 16), None)
    kept = first.clone()
    again = decode_with(plan, conditions, cool, uniform_table(2, 0, 3, 16), None)
    assert torch.equal(again, decode(model, conditions, plan.order, cool, uniform_table(2, 0, 3, 16)))
    assert torch.equal(first, kept) and not torch.equal(first, again)
