"""Many batches through one engine, and what happens where an optimisation can't be had."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch.nn.attention import flex_attention

from flashar_cli.config import RasterConfig, Sampling
from flashar_cli.decoding import compiled, graphs
from flashar_cli.decoding.compiled import compiled_parts
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.failures import OptimisationFailed
from flashar_cli.decoding.forwards import packed_linears
from flashar_cli.decoding.images import Request, generate_tokens
from flashar_cli.decoding.jacobi import JacobiDecoder
from flashar_cli.decoding.levels import LEVELS
from flashar_cli.decoding.static import FLASHAR
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.nn import attention
from flashar_cli.nn.attention import attend
from flashar_cli.nn.layers import Block
from flashar_cli.nn.sampling import uniform_table
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.decoding.plain import BY_ORDER, by, decode, key_of, plan_of
from tests.decoding.test_decoder import make_conditions, make_model
from tests.tiny_models import TINY_VQ, build_model, emu_like_config, random_config

PARAMS = Sampling(cfg_scale=2.0, temperature=0.9, top_k=9)


def uniform(first: int, batch: int, num_cells: int = 15) -> torch.Tensor:
    return uniform_table(0, first, batch, num_cells)


def test_one_plan_a_key_and_no_new_buffers_for_the_next_batch():
    model = make_model(3, 5, "hidden")
    engine, order, conditions = Engine(model), model.config.order_grid.diagonal(), make_conditions(3, False)
    first = engine.decode(by(order), conditions, PARAMS, uniform(0, 3))
    plan = engine.plan(by(order), key_of(model, 3, order, PARAMS))
    addresses = [buffer.data_ptr() for buffer in plan.buffers()]
    other = Sampling(cfg_scale=4.0, temperature=0.5, top_k=9)  # other numbers, the same operations
    second = engine.decode(by(order), conditions, other, uniform(3, 3))
    assert engine.plan(by(order), key_of(model, 3, order, other)) is plan
    assert [buffer.data_ptr() for buffer in plan.buffers()] == addresses
    assert torch.equal(first, decode(model, conditions, order, PARAMS, uniform(0, 3)))
    assert torch.equal(second, decode(model, conditions, order, other, uniform(3, 3)))
    plain = Sampling(cfg_scale=2.0, top_k=9)  # a temperature of 1 takes no division
    for batch, params in ((2, PARAMS), (3, PARAMS.changed(cfg_scale=1.0)), (3, PARAMS.changed(top_k=8)), (3, plain)):
        assert engine.plan(by(order), key_of(model, batch, order, params)) is not plan
    raster = model.config.order_grid.raster()
    assert engine.plan(by(raster), key_of(model, 3, raster, PARAMS)) is not plan


class ReplayedWork:
    """Stands in for a captured graph: a replay runs the work again and leaves its result where it was."""

    def __init__(self, work):
        self.work, self.result = work, work()

    def replay(self):
        self.result.copy_(self.work())


@pytest.mark.parametrize("order_name", ("raster", "diagonal"))
@torch.inference_mode()
def test_graphs_in_turn_decode_an_image(monkeypatch, order_name):
    """What is in which graph, and in which order they run; that capture itself works takes a GPU."""
    monkeypatch.setattr(graphs, "STEPS_PER_GRAPH", 4)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs.GraphedPlan, "_warm_up", lambda self, to_pixels: None)
    captured = []

    def capture(self, work):
        captured.append(ReplayedWork(work))
        return captured[-1], captured[-1].result

    monkeypatch.setattr(graphs.GraphedPlan, "_capture", capture)
    model, tokenizer = make_model(3, 5, "hidden"), VQTokenizer(TINY_VQ).eval()
    order = getattr(model.config.order_grid, order_name)()
    plan = plan_of(model, 3, order, PARAMS)
    graphed = graphs.GraphedPlan(plan, tokenizer.decode_unchecked)
    assert len(captured) == 1 + -(-order.num_steps // 4) + 1
    for first in (0, 3):
        plan.load(make_conditions(3, False), PARAMS, uniform(first, 3))
        graphed.prefix()
        graphed.steps()
        expected = decode(model, make_conditions(3, False), order, PARAMS, uniform(first, 3))
        assert torch.equal(plan.tokens(), expected)
        assert torch.equal(graphed.pixels(expected), tokenizer.decode(expected))

    w1 = model.backbone.blocks[0].feed_forward.w1.weight
    address = w1.data_ptr()
    compiled_parts(model)
    assert w1.data_ptr() != address
    assert address in {weight.data_ptr() for weight in graphed.weights}, "the graphs still read these"


def test_graphs_without_cuda_are_one_line_and_eager():
    model, lines = make_model(3, 5, "hidden"), []
    engine = Engine(model, optimisation="graph", explain=lines.append)
    order, conditions = model.config.order_grid.diagonal(), make_conditions(2, False)
    tokens = engine.decode(by(order), conditions, PARAMS, uniform(0, 2))
    assert torch.equal(tokens, decode(model, conditions, order, PARAMS, uniform(0, 2)))
    assert lines == ["CUDA graphs need a CUDA device"]
    assert engine.optimisation == "eager"
    with pytest.raises(FlasharError, match="expected one of eager, packed, flex, graph, compile"):
        Engine(model, optimisation="fast")


def test_steps_that_depend_on_tokens_are_in_no_graph_and_one_line_says_so(monkeypatch):
    monkeypatch.setattr(Engine, "_captures", property(lambda self: self.level.graphed))
    model, lines = make_model(3, 5, "hidden"), []
    engine, conditions = Engine(model, optimisation="compile", explain=lines.append), make_conditions(2, False)
    for first in (0, 2):
        tokens = engine.decode(JacobiDecoder(3), conditions, PARAMS, uniform(first, 2))
        assert torch.equal(tokens, decode(model, conditions, JacobiDecoder(3), PARAMS, uniform(first, 2)))
    assert lines == ["the steps of jacobi:3 depend on the sampled tokens, which a CUDA graph can't follow"]
    assert engine.optimisation == "eager"


def test_parts_run_compiled_only_while_decoding(monkeypatch):
    model, calls = make_model(3, 5, "hidden"), []

    def compiler(function, dynamic):
        assert dynamic
        return lambda *args: calls.append(function.__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compiler)
    order, conditions = model.config.order_grid.diagonal(), make_conditions(2, False)
    engine = Engine(model, optimisation="compile")
    tokens = engine.decode(by(order), conditions, PARAMS, uniform(0, 2))
    num_blocks = sum(isinstance(module, Block) for module in model.modules())
    expected = {
        "_embed": order.num_steps - 1,
        "without_last_sum": num_blocks * order.num_steps,
        "_norm_of_sum": 2 * order.num_steps,
        "guided_logits": order.num_steps,
    }
    assert Counter(calls) == expected
    assert torch.equal(tokens, decode(model, conditions, order, PARAMS, uniform(0, 2)))
    assert Counter(calls) == expected  # the model itself is as it was


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="packed weights are oneDNN's")
@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize("gate", ("hidden", "logits"))
def test_packed_weights_give_the_same_logits(gate, captions):
    model, lines = make_model(3, 5, gate, captions), []
    order, conditions = model.config.order_grid.diagonal(), make_conditions(3, captions)
    logits: dict[str, list[torch.Tensor]] = {"eager": [], "packed": []}
    for seen, how in ((logits["eager"], nullcontext()), (logits["packed"], packed_linears(model).active())):
        with how:
            decode(model, conditions, order, PARAMS, uniform(0, 3), lambda _, step, seen=seen: seen.append(step))
    torch.testing.assert_close(logits["packed"], logits["eager"], atol=1e-4, rtol=0)
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(*logits.values(), strict=True))
    engine = Engine(model, optimisation="packed", explain=lines.append)
    tokens = engine.decode(by(order), conditions, PARAMS, uniform(0, 3))
    assert torch.equal(tokens, decode(model, conditions, order, PARAMS, uniform(0, 3)))
    assert lines == []


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="a CPU without bfloat16")
def test_packed_bfloat16_weights_sample_nearly_the_same_tokens():
    model, lines = make_model(6, 6, "hidden").bfloat16(), []
    order, conditions = model.config.order_grid.diagonal(), make_conditions(3, False)
    engine = Engine(model, optimisation="packed", explain=lines.append)
    tokens = engine.decode(by(order), conditions, PARAMS, uniform(0, 3, 36))
    assert (tokens == decode(model, conditions, order, PARAMS, uniform(0, 3, 36))).float().mean() > 0.8
    assert lines == []


def test_packed_weights_are_for_dtypes_that_onednn_packs():
    lines: list[str] = []
    Engine(make_model(3, 5, "hidden").half(), optimisation="packed", explain=lines.append)
    assert len(lines) == 1 and "need float32 or bfloat16 on a CPU" in lines[0]


def test_w1_and_w3_are_one_product_of_the_same_memory(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: forward)
    model = make_model(3, 5, "hidden")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 3, model.config.backbone.dim)
    feed_forward = model.backbone.blocks[0].feed_forward
    expected = feed_forward(x)
    with compiled_parts(model).active():
        assert feed_forward.w13.data_ptr() == feed_forward.w1.weight.data_ptr()
        assert feed_forward.w13[-1].data_ptr() == feed_forward.w3.weight[-1].data_ptr()
        torch.testing.assert_close(feed_forward(x), expected, atol=1e-6, rtol=0)
    assert feed_forward.w13 is None
    addresses = []
    for _ in range(2):
        with compiled_parts(model).active():
            addresses.append([block.feed_forward.w13.data_ptr() for block in model.backbone.blocks])
    assert addresses[0] == addresses[1], "a second engine of the model takes no memory"
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_compiler_that_fails_is_one_line_and_eager(monkeypatch):
    failing_blocks(monkeypatch, TorchDynamoException("no C++ compiler\nand a long story"))
    model, lines = make_model(3, 5, "hidden"), []
    engine = Engine(model, optimisation="compile", explain=lines.append)
    order, conditions = model.config.order_grid.raster(), make_conditions(2, False)
    tokens = engine.decode(by(order), conditions, PARAMS, uniform(0, 2))
    assert torch.equal(tokens, decode(model, conditions, order, PARAMS, uniform(0, 2)))
    assert lines == ["torch.compile failed (no C++ compiler)"]
    again = Engine(model, optimisation="compile", explain=lines.append)
    logits = again.teacher_forced(by(order), conditions, PARAMS, tokens)
    assert torch.equal(logits, Engine(model).teacher_forced(by(order), conditions, PARAMS, tokens))
    assert lines[1:] == lines[:1] and again.optimisation == "eager"


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    ("error", "raised"),
    (
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (RuntimeError(CPU_ALLOCATOR), "can't allocate memory"),
        (chained(TorchDynamoException("a step"), torch.OutOfMemoryError("CUDA out of memory")), "CUDA out of memory"),
        (chained(TorchDynamoException("a step"), RuntimeError(CPU_ALLOCATOR)), "can't allocate memory"),
        (BackendCompilerFailed(str, RuntimeError(CPU_ALLOCATOR), None), "can't allocate memory"),
        (RuntimeError("what eager code would raise too"), "what eager code would raise too"),
    ),
    ids=("cuda", "cpu", "cuda compiling", "cpu compiling", "cpu in the compiler", "no fault of the compiler"),
)
def test_what_eager_decoding_does_not_get_round_goes_up(monkeypatch, error, raised):
    failing_blocks(monkeypatch, error)
    model, lines = make_model(3, 5, "hidden"), []
    order, conditions = model.config.order_grid.raster(), make_conditions(2, False)
    engine = Engine(model, optimisation="compile", explain=lines.append)
    with pytest.raises(RuntimeError, match=raised) as caught:
        engine.decode(by(order), conditions, PARAMS, uniform(0, 2))
    assert type(caught.value) is (torch.OutOfMemoryError if "CUDA" in raised else RuntimeError)
    assert lines == [] and engine.optimisation == "compile"


class CudaLike:
    """What PyTorch does with streams, captures and their memory, its handling of errors included: torch/cuda/graphs.py,
    ATen's CUDAGraph.cpp, and endAllocateToPool and releasePool of the caching allocator. A failed capture's pool is
    ended by whoever ends it, in PyTorch 2.11 not by PyTorch.
    """

    def __init__(self, monkeypatch, ends_pools):
        self.stream_now, self.ends_pools = "default", ends_pools
        self.recording: list[str] = []
        self.uses: Counter[str] = Counter()
        self.generator_captures = False
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_pool, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self.release_pool, raising=False)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: "capture")
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "ours")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None, reset=lambda: None))
        monkeypatch.setattr(torch.cuda, "graph", partial(Capture, self))
        monkeypatch.setattr(graphs.GraphedPlan, "_warm_up", lambda self, to_pixels: None)

    def stream(self, stream):
        return OnStream(self, stream)

    def end_pool(self, device, pool):
        assert device == 0
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    def release_pool(self, device, pool):
        self.uses[pool] -= 1
        assert self.uses[pool] >= 0


class OnStream:
    def __init__(self, cuda, stream):
        self.cuda, self.stream = cuda, stream

    def __enter__(self):
        self.before, self.cuda.stream_now = self.cuda.stream_now, self.stream

    def __exit__(self, *error):
        self.cuda.stream_now = self.before


class Capture(OnStream):
    def __init__(self, cuda, graph, pool="its own", stream=None):
        super().__init__(cuda, stream)
        self.pool = pool

    def __enter__(self):
        assert self.pool not in self.cuda.recording, "beginAllocateToPool: already recording to mempool_id"
        self.cuda.recording.append(self.pool)
        self.cuda.uses[self.pool] += 1
        self.cuda.generator_captures = True
        super().__enter__()

    def __exit__(self, *error):
        if error != (None, None, None):
            if self.cuda.ends_pools:
                self.cuda.end_pool(0, self.pool)
                self.cuda.release_pool(0, self.pool)
                self.cuda.generator_captures = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.end_pool(0, self.pool)
        self.cuda.generator_captures = False
        super().__exit__(*error)


@pytest.fixture(params=(False, True), ids=("2.11", "ends pools itself"))
def cuda(monkeypatch, request):
    return CudaLike(monkeypatch, request.param)


def capturing_engine(monkeypatch, model, lines):
    """An engine that captures on a CPU, with what stands in for CUDA."""
    monkeypatch.setitem(LEVELS, "graph", replace(LEVELS["graph"], obstacle=lambda model: None))
    monkeypatch.setattr(Engine, "_captures", property(lambda engine: engine.level.graphed))
    return Engine(model, optimisation="graph", explain=lines.append)


def test_a_failed_capture_names_its_reason_and_leaves_its_stream(monkeypatch, cuda):
    model, lines = make_model(3, 5, "hidden"), []
    order, conditions = model.config.order_grid.diagonal(), make_conditions(2, False)
    streams = []
    forward = model.backbone.norm.forward

    def norm(x):
        streams.append(cuda.stream_now)
        if cuda.stream_now == "capture":
            raise RuntimeError("operation not permitted when stream is capturing\nand a long story")
        return forward(x)

    model.backbone.norm.forward = norm
    engine = capturing_engine(monkeypatch, model, lines)
    tokens = engine.decode(by(order), conditions, PARAMS, uniform(0, 2))
    assert lines == ["capture failed (operation not permitted when stream is capturing)"]
    assert streams == ["capture"] + ["default"] * order.num_steps and cuda.stream_now == "default"
    assert cuda.recording == [] and cuda.uses["ours"] == 0 and not cuda.generator_captures
    assert torch.equal(tokens, decode(model, conditions, order, PARAMS, uniform(0, 2)))


@pytest.mark.parametrize("optimisation", ("eager", "graph", "compile", "plain"))
def test_all_attention_of_a_decode_leaves_cudnn_out(monkeypatch, optimisation):
    """Eager, compiled, warming up and capturing, after a fall-back, and teacher-forced."""
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: forward)
    seen, own = [], attention.F.scaled_dot_product_attention

    def attend(*args, **settings):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return own(*args, **settings)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attend)
    model, params = make_model(3, 5, "hidden"), PARAMS
    order, conditions = model.config.order_grid.diagonal(), make_conditions(2, False)
    if optimisation == "plain":
        decode(model, conditions, order, params, uniform(0, 2))
    else:
        if optimisation == "graph":
            CudaLike(monkeypatch, ends_pools=True)
            engine = capturing_engine(monkeypatch, model, [])
        else:
            engine = Engine(model, optimisation=optimisation)
        tokens = engine.decode(by(order), conditions, params, uniform(0, 2))
        engine.teacher_forced(by(order), conditions, params, tokens)
        if optimisation == "graph":
            monkeypatch.setattr(engine, "_graphs_of", lambda plan: fail(OptimisationFailed("no")))
            engine.decode(by(order), conditions, params, uniform(0, 2))
            assert engine.optimisation == "eager"
    num_blocks = sum(isinstance(module, Block) for module in model.modules())
    num_decodes = {"plain": 1, "graph": 3}.get(optimisation, 2)
    assert seen == [False] * num_blocks * order.num_steps * num_decodes
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("error", (torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()))
def test_what_stops_a_capture_but_is_no_fault_of_it_goes_up(monkeypatch, cuda, error):
    def norm(x):
        raise error

    model, lines = make_model(3, 5, "hidden"), []
    model.backbone.norm.forward = norm
    engine = capturing_engine(monkeypatch, model, lines)
    with pytest.raises(type(error)):
        engine.decode(by(model.config.order_grid.raster()), make_conditions(2, False), PARAMS, uniform(0, 2))
    assert lines == [] and cuda.stream_now == "default" and engine.optimisation == "graph"
    assert cuda.recording == [] and cuda.uses["ours"] == 0


def test_running_out_of_memory_in_a_capture_frees_it_at_once(monkeypatch, cuda):
    """A sweep of batch sizes goes on after it: what the capture held must not wait for a collection of garbage."""
    held = []

    def norm(x):
        held.append(weakref.ref(x))
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = make_model(3, 5, "hidden")
    model.backbone.norm.forward = norm
    engine = capturing_engine(monkeypatch, model, [])
    gc.disable()
    try:
        with suppress(torch.OutOfMemoryError):
            engine.decode(by(model.config.order_grid.raster()), make_conditions(2, False), PARAMS, uniform(0, 2))
        assert [x() for x in held] == [None]
    finally:
        gc.enable()


def test_a_fall_back_keeps_no_graphs_and_one_plan(monkeypatch, cuda):
    model, lines = make_model(3, 5, "hidden"), []
    order = model.config.order_grid.diagonal()
    engine = capturing_engine(monkeypatch, model, lines)
    plans = []
    for batch in (1, 2):
        engine.decode(by(order), make_conditions(batch, False), PARAMS, uniform(0, batch))
        plans.append(weakref.ref(engine.plan(by(order), key_of(model, batch, order, PARAMS))))
    for batch, plan in enumerate(plans, start=1):
        assert engine.plan(by(order), key_of(model, batch, order, PARAMS)) is plan()
    norm, own, fails = model.backbone.norm, model.backbone.norm.forward, RuntimeError("no")
    monkeypatch.setattr(norm, "forward", lambda x: own(x) if cuda.stream_now == "default" else fail(fails))
    engine.decode(by(order), make_conditions(3, False), PARAMS, uniform(0, 3))
    gc.collect()
    assert lines == ["capture failed (no)"]
    assert [plan() for plan in plans] == [None, None]


def fail(error):
    raise error


def failing_blocks(monkeypatch, error):
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: lambda *args: fail(error))


@pytest.mark.parametrize("optimisation", LEVELS)
def test_why_a_level_cannot_run_is_known_beforehand(optimisation):
    half = make_model(3, 5, "hidden", captions=True).half()
    needs_mask = "a caption needs a key mask"
    reasons = {"graph": "need a CUDA device", "packed": "need float32 or bfloat16", "flex": needs_mask}
    reason = LEVELS[optimisation].obstacle(half)
    assert reasons[optimisation] in reason if optimisation in reasons else reason is None


def test_a_last_smaller_batch_is_padded_where_sizes_are_dear(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: forward)
    model = make_model(3, 5, "hidden")
    request = Request(FLASHAR, make_conditions(3, False), 5, PARAMS, Grid(3, 5), seed=7, batch_size=3)
    batches = list(generate_tokens(Engine(model, optimisation="compile"), request))
    assert [len(tokens) for tokens in batches] == [3, 2]
    plain = list(generate_tokens(Engine(model), request))
    assert torch.equal(torch.cat(batches), torch.cat(plain))


def test_what_is_captured_with_the_tokens_is_compiled_with_the_blocks(monkeypatch):
    for level in ("graph", "flex"):
        monkeypatch.setitem(LEVELS, level, replace(LEVELS[level], obstacle=lambda model: None))
    model, tokenizer = make_model(3, 5, "hidden"), VQTokenizer(TINY_VQ).eval()
    for optimisation in ("eager", "graph", "compile", "flex"):
        engine = Engine(model, tokenizer, optimisation)
        compiles = optimisation in ("compile", "flex")
        expected = engine.pixel_decoder.compiled if compiles else engine.pixel_decoder
        captured = engine._captured_pixels(Grid(3, 5))
        assert isinstance(captured, partial) and captured.func == expected
    assert Engine(model, None, "compile")._captured_pixels(Grid(3, 5)) is None


@pytest.fixture
def traced_only(monkeypatch):
    """``torch.compile`` without its code generation: tracing, guards and limits are the same, and take no seconds."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # what other tests traced
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


def test_a_deep_model_compiles_no_more_than_a_shallow_one(traced_only, monkeypatch):
    """Of the block prefix, one cell, several cells; of embedding and norm one cell, several; of heads and gate as the
    numbers of cells come together (1, 1 to 2, several, several to 1, and raster). None of them falls into pieces.
    """
    monkeypatch.setattr(compiled, "MAX_VARIANTS", 5)
    numbers, counters = [], torch._dynamo.utils.counters
    for num_layers in (2, 4):
        torch._dynamo.reset()
        counters.clear()
        config = random_config(4, 4, tokenizer=False).model_dump()
        config["backbone"]["num_layers"], config["branch"]["depth"] = num_layers, num_layers // 2
        model, lines = build_model(RasterConfig.model_validate(config)), []
        engine, grid = Engine(model, optimisation="compile", explain=lines.append), model.config.order_grid
        for order, batch in ((grid.diagonal(), 2), (grid.raster(), 2), (grid.diagonal(), 3))[: 4 - num_layers // 2]:
            conditions, numbers_BN = make_conditions(batch, False), uniform(0, batch, 16)
            tokens = engine.decode(by(order), conditions, PARAMS, numbers_BN)
            assert torch.equal(tokens, decode(model, conditions, order, PARAMS, numbers_BN))
        assert lines == [] and not counters["graph_break"]
        numbers.append(counters["stats"]["unique_graphs"])
    assert numbers == [3 + 2 + 2 + 5] * 2


@pytest.mark.slow
def test_line_ends_and_a_branch_apart_compile_whole(traced_only):
    model, lines, counters = build_model(emu_like_config(2, 2)), [], torch._dynamo.utils.counters
    engine, conditions = Engine(model, optimisation="compile", explain=lines.append), model.prefix.example(2, seed=0)
    for decoder in BY_ORDER.values():
        tokens = engine.decode(decoder, conditions, PARAMS, uniform(0, 2, 4))
        assert torch.equal(tokens, decode(model, conditions, decoder, PARAMS, uniform(0, 2, 4)))
    assert lines == [] and not counters["graph_break"]


def test_a_part_that_is_not_compiled_any_more_is_said(traced_only, monkeypatch):
    """By default PyTorch runs what has too many variants as it is, without a word."""
    monkeypatch.setattr(compiled, "MAX_VARIANTS", 2)
    model, lines = make_model(3, 5, "hidden"), []
    engine, order = Engine(model, optimisation="compile", explain=lines.append), model.config.order_grid.diagonal()
    tokens = engine.decode(by(order), make_conditions(2, False), PARAMS, uniform(0, 2))
    assert lines == ["torch.compile failed (a part of the step has 2 compiled variants and needs more)"]
    assert torch.equal(tokens, decode(model, make_conditions(2, False), order, PARAMS, uniform(0, 2)))


def test_flex_attends_where_there_is_no_mask(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: forward)
    queries = []

    def flex(q, k, v, enable_gqa):
        queries.append(q.shape[2])
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return attend(q, k, v, None, "eager")

    monkeypatch.setattr(flex_attention, "flex_attention", flex)
    monkeypatch.setitem(LEVELS, "flex", replace(LEVELS["flex"], obstacle=lambda model: None))
    model, lines = make_model(3, 5, "hidden"), []
    engine, order = Engine(model, optimisation="flex", explain=lines.append), model.config.order_grid.diagonal()
    tokens = engine.decode(by(order), make_conditions(2, False), PARAMS, uniform(0, 2))
    num_blocks = sum(isinstance(module, Block) for module in model.modules())
    assert queries == [len(cells) for cells in order.steps[:-1] for _ in range(num_blocks)]  # not for the prefix
    assert lines == []
    assert torch.equal(tokens, decode(model, make_conditions(2, False), order, PARAMS, uniform(0, 2)))
    assert not any("attend" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("captions", "reason"), ((True, "a caption needs a key mask at every step"), (False, "needs a CUDA device"))
)
def test_flex_is_not_for_captions_nor_for_a_cpu(captions, reason):
    lines, model = [], make_model(3, 5, "hidden", captions)
    assert Engine(model, optimisation="flex", explain=lines.append).optimisation == "eager"
    assert len(lines) == 1 and reason in lines[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order_name", ("diagonal", "raster"))
@pytest.mark.slow
def test_compiled_parts_agree(order_name):
    model = make_model(3, 5, "hidden")
    order = getattr(model.config.order_grid, order_name)()
    greedy, lines = Sampling(cfg_scale=2.0, temperature=0), []
    engine = Engine(model, optimisation="compile", explain=lines.append)
    tokens = engine.decode(by(order), make_conditions(2, False), greedy, uniform(0, 2))
    logits = engine.teacher_forced(by(order), make_conditions(2, False), greedy, tokens)
    assert lines == []
    expected = Engine(model).teacher_forced(by(order), make_conditions(2, False), greedy, tokens)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert torch.equal(tokens, decode(model, make_conditions(2, False), order, greedy, uniform(0, 2)))
