"""CUDA graphs against eager decoding on the same device."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.config import Sampling
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.forwards import Forwards, joined_products
from flashar_cli.decoding.graphs import GraphedPlan
from flashar_cli.decoding.quantize import SCHEMES, quantize_model
from flashar_cli.nn.sampling import uniform_table
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.decoding.plain import by, decode, decode_with, key_of, plan_of
from tests.decoding.test_decoder import make_conditions, make_model
from tests.tiny_models import TINY_VQ

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device"),
]
GRIDS = ((3, 5), (5, 1), (16, 16))  # 16x16 raster: more than one graph of steps


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def order_of(model, name):
    return getattr(model.config.order_grid, name)()


def assert_replays_eager(graphs, kept, conditions, params, uniform):
    """A replay samples eager's tokens, and the logits ``kept`` at capture become eager's, bit for bit."""
    plan, seen = graphs.plan, []
    eager = decode(plan.model, conditions, plan.order, params, uniform, lambda step, logits: seen.append(logits))
    plan.load(conditions, params, uniform)
    graphs.prefix()
    graphs.steps()
    assert torch.equal(plan.tokens(), eager)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, seen, strict=True))


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("scale", (1.0, 2.0))
@pytest.mark.parametrize("order_name", ("raster", "diagonal"))
@pytest.mark.parametrize("shape", GRIDS)
@torch.inference_mode()
def test_replayed_logits_are_those_of_eager_bit_for_bit(shape, order_name, scale, batch, captions):
    model = make_model(*shape, "hidden", captions).cuda()
    order, conditions = order_of(model, order_name), make_conditions(batch, captions)
    num_cells = shape[0] * shape[1]
    settings = [Sampling(cfg_scale=scale, temperature=heat, top_k=9, top_p=0.9) for heat in (1.0, 0.7)]
    plan = plan_of(model, batch, order, settings[0])
    plan.load(conditions, settings[0], uniform_table(9, 0, batch, num_cells))
    kept: list[torch.Tensor] = []
    graphs = GraphedPlan(plan, None, on_step=lambda step, logits: kept.append(logits))
    for seed, params in enumerate(settings):
        uniform = uniform_table(seed, 0, batch, num_cells)
        assert_replays_eager(graphs, kept, conditions, params, uniform)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@torch.inference_mode()
def test_an_engine_captures_a_key_once(dtype):
    model = make_model(4, 4, "hidden").to("cuda", dtype)
    tokenizer = VQTokenizer(TINY_VQ).cuda().eval()
    lines: list[str] = []
    engine = Engine(model, tokenizer, "graph", lines.append)
    order, conditions, params = order_of(model, "diagonal"), make_conditions(3, False), Sampling(cfg_scale=2.0)
    engine.warm(by(order), conditions, params)
    assert lines == []
    allocated = torch.cuda.memory_allocated()
    for seed in range(3):
        uniform = uniform_table(seed, 0, 3, 16)
        tokens = engine.decode(by(order), conditions, params, uniform)
        plan = engine.plan(by(order), key_of(model, 3, order, params))
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(engine.pixels(tokens), tokenizer.decode(tokens), atol=tolerance, rtol=0)
        with Forwards(joined_products(model)).active():  # one product rounds otherwise than two
            assert torch.equal(tokens, decode_with(plan, conditions, params, uniform, None))
        del tokens, plan
    assert torch.cuda.memory_allocated() == allocated


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_graphs_of_quantised_weights_replay_what_eager_does(scheme, dtype):
    pytest.importorskip("torchao")
    model, lines = make_model(4, 4, "hidden").to("cuda", dtype), []
    quantize_model(model, scheme)
    order, conditions = order_of(model, "diagonal"), make_conditions(3, False)
    params, uniform = Sampling(cfg_scale=2.0), uniform_table(0, 0, 3, 16)
    tokens = Engine(model, None, "graph", lines.append).decode(by(order), conditions, params, uniform)
    assert lines == []
    assert torch.equal(tokens, decode(model, conditions, order, params, uniform))


def test_what_cannot_be_captured_is_one_line_and_eager():
    model = make_model(3, 5, "hidden").cuda()
    forward, lines = model.backbone.norm.forward, []
    model.backbone.norm.forward = lambda x: forward(x) * float(x.sum().item() == x.sum().item())
    engine = Engine(model, None, "graph", lines.append)
    order, conditions, params = order_of(model, "raster"), make_conditions(1, False), Sampling()
    tokens = engine.decode(by(order), conditions, params, uniform_table(0, 0, 1, 15))
    assert len(lines) == 1 and lines[0].startswith("capture failed (") and engine.optimisation == "eager"
    assert "previous error" not in lines[0], "the reason is the read of a value, not that the capture ended badly"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(tokens, decode(model, conditions, order, params, uniform_table(0, 0, 1, 15)))

    # Nothing goes on as if the capture ran: memory, random numbers, and captures after it.
    del engine
    torch.cuda.empty_cache()
    assert torch.randn(8, device="cuda").isfinite().all()
    model.backbone.norm.forward = forward
    again = Engine(model, None, "graph", lines.append)
    assert again.decode(by(order), conditions, params, uniform_table(0, 0, 1, 15)).shape == (1, 3, 5)
    assert len(lines) == 1 and again.optimisation == "graph"
    before = torch.cuda.memory_allocated()
    torch.randn(1 << 20, device="cuda")
    assert torch.cuda.memory_allocated() == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimisation", ("compile", "flex"))
@pytest.mark.parametrize("order_name", ("raster", "diagonal"))
def test_compiled_parts_sample_as_eager_ones_in_graphs(order_name, optimisation):
    model = make_model(6, 6, "hidden").cuda()
    lines: list[str] = []
    engine = Engine(model, None, optimisation, lines.append)
    order, conditions = order_of(model, order_name), make_conditions(3, False)
    params = Sampling(cfg_scale=2.0, temperature=0)
    tokens = engine.decode(by(order), conditions, params, uniform_table(0, 0, 3, 36))
    logits = engine.teacher_forced(by(order), conditions, params, tokens)
    assert lines == []
    torch.testing.assert_close(
        logits, Engine(model).teacher_forced(by(order), conditions, params, tokens), atol=1e-4, rtol=0
    )
    # Rounding decides near ties, and a token sampled otherwise changes those after it.
    assert (tokens == decode(model, conditions, order, params, uniform_table(0, 0, 3, 36))).float().mean() > 0.8


@pytest.mark.filterwarnings("ignore")
def test_a_later_engine_leaves_the_graphs_of_an_earlier_one_their_weights():
    """Compiling, as any engine but an eager one, puts other tensors in the place of weights that graphs read."""
    model = make_model(6, 6, "hidden").cuda()
    order, conditions, params = order_of(model, "diagonal"), make_conditions(3, False), Sampling(cfg_scale=2.0)
    uniform = uniform_table(0, 0, 3, 36)
    plan = plan_of(model, 3, order, params)
    before = decode_with(plan, conditions, params, uniform, None)
    graphs = GraphedPlan(plan, None)
    compiled = Engine(model, None, "compile")
    compiled.decode(by(order), conditions, params, uniform)
    torch.cuda.empty_cache()
    junk = [torch.full_like(parameter, torch.nan) for parameter in model.parameters() for _ in range(4)]
    plan.load(conditions, params, uniform)
    graphs.prefix()
    graphs.steps()
    assert torch.equal(plan.tokens(), before)
    del junk
