"""8-bit weights: which layers, how near, and what can't be had."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from flashar_cli.config import Sampling
from flashar_cli.decoding.compiled import compiled_parts
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.forwards import packing_obstacle
from flashar_cli.decoding.quantize import SCHEMES, check_scheme, is_quantized, quantize_model
from flashar_cli.errors import FlasharError
from tests.decoding.plain import by, decode
from tests.decoding.test_decoder import make_conditions, make_model, teacher_forced

CPU = torch.device("cpu")
GREEDY = Sampling(cfg_scale=2.0, temperature=0)


def quantized_names(model: nn.Module) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, nn.Linear) and is_quantized(part)}


def test_blocks_and_heads_are_quantised_and_nothing_else() -> None:
    pytest.importorskip("torchao")
    model = make_model(3, 5, "hidden", captions=True)
    assert not is_quantized(model)
    quantize_model(model, "int8")
    parts = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    blocks = ("backbone.blocks.0", "backbone.blocks.1", "branch.blocks.0")
    expected = {f"{block}.{part}" for block in blocks for part in parts}
    assert quantized_names(model) == expected | {"backbone.head", "branch.head"}
    assert (model.dtype, model.device) == (torch.float32, CPU)


@pytest.mark.parametrize(("scheme", "rounding"), [("int8", 0.5 / 127), ("fp8", 2.0**-4)])
def test_weights_are_near_and_of_8_bits(scheme: str, rounding: float) -> None:
    """int8: half a step of the row's largest; float8 e4m3: half a unit of 3 bits, of each weight itself."""
    pytest.importorskip("torchao")
    model = make_model(3, 5, "hidden")
    layers = {"head": model.backbone.head, "w2": model.branch.blocks[0].feed_forward.w2}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    quantize_model(model, scheme)
    for name, layer in layers.items():
        weight = layer.weight
        assert weight.qdata.element_size() == 1
        assert weight.scale.numel() == len(weight)
        largest = before[name].abs().amax(dim=1, keepdim=True)
        bound = largest if scheme == "int8" else before[name].abs() + largest * 2.0**-9
        assert bool(((weight.dequantize() - before[name]).abs() <= rounding * bound * 1.01).all())
        assert not torch.equal(weight.dequantize(), before[name])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_cached_decoding_still_equals_the_teacher_forced_forward(scheme: str, dtype: torch.dtype) -> None:
    pytest.importorskip("torchao")
    model = make_model(3, 5, "hidden").to(dtype)
    quantize_model(model, scheme)
    order, conditions, steps = model.config.order_grid.diagonal(), make_conditions(2, False), []
    tokens = decode(model, conditions, order, GREEDY, torch.zeros(2, 15), lambda _, logits: steps.append(logits))
    expected = teacher_forced(model, tokens, conditions, order, 2.0)
    tolerance = 1e-4 if dtype == torch.float32 else 0.03 * expected.abs().max().item()
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=tolerance, rtol=0)


def test_quantised_weights_are_not_packed() -> None:
    pytest.importorskip("torchao")
    model, lines = make_model(3, 5, "hidden"), []
    quantize_model(model, "int8")
    assert packing_obstacle(model)
    engine = Engine(model, optimisation="packed", explain=lines.append)
    assert engine.optimisation == "eager"
    assert len(lines) == 1 and lines[0].endswith("not quantised")


def test_w1_and_w3_of_quantised_weights_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: forward)
    model = make_model(3, 5, "hidden")
    quantize_model(model, "int8")
    with compiled_parts(model).active():
        assert all(block.feed_forward.w13 is None for block in model.backbone.blocks)
        assert "guided_logits" in model.__dict__, "the heads are compiled with it"
        tokens = decode(model, make_conditions(2, False), model.config.order_grid.raster(), GREEDY, torch.zeros(2, 15))
    assert tokens.shape == (2, 3, 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compiled_parts_agree_on_quantised_weights(scheme: str) -> None:
    pytest.importorskip("torchao")
    model, lines = make_model(3, 5, "hidden"), []
    quantize_model(model, scheme)
    order, conditions = model.config.order_grid.diagonal(), make_conditions(2, False)
    engine = Engine(model, optimisation="compile", explain=lines.append)
    tokens = engine.decode(by(order), conditions, GREEDY, torch.zeros(2, 15))
    assert lines == []
    assert torch.equal(tokens, decode(model, conditions, order, GREEDY, torch.zeros(2, 15)))


def test_what_is_refused_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlasharError, match="--quantize is int4; expected one of int8, fp8"):
        check_scheme("int4", CPU, torch.float32)  # type: ignore[arg-type]
    with pytest.raises(FlasharError, match="int8 overflows float16"):
        check_scheme("int8", CPU, torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    with pytest.raises(FlasharError, match="fp8 needs compute capability 8.9, which an A100 lacks"):
        check_scheme("fp8", torch.device("cuda"), torch.bfloat16)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model = make_model(3, 5, "hidden")
    with pytest.raises(FlasharError, match="needs torchao .*pip install flashar\\[quant\\]"):
        quantize_model(model, "int8")
    assert not is_quantized(model) and logging.root.manager.disable == logging.NOTSET


def test_int8_in_float16_would_overflow() -> None:
    """Why it is refused: torchao scales the sums only after adding up whole numbers in float16."""
    torchao = pytest.importorskip("torchao.quantization")
    layer, x = nn.Linear(96, 8, bias=False).half(), torch.full((1, 96), 50.0).half()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        assert bool(torch.isfinite(layer(x)).all())
        torchao.quantize_(layer, torchao.Int8WeightOnlyConfig(version=2, set_inductor_config=False))
        assert not bool(torch.isfinite(layer(x)).any())
