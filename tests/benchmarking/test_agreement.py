"""Agreement with float32 against the same numbers by other means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.agreement import agreements, references
from flashar_cli.benchmarking.estimate import expected_agreement_s
from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.subject import BenchModel, converted
from flashar_cli.config import CaptionPrefix, Sampling
from flashar_cli.decoding import forwards
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.decoding.static import FLASHAR, RASTER
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid, Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import guide
from flashar_cli.tokenizers.pixels import from_uint8
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.benchmarking.test_run import ARMS, RATES
from tests.tiny_models import TINY_VQ, build_model, random_config

GRIDS = [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)]


def make_model(height: int, width: int, captions: bool = False) -> FlasharModel:
    """Weights large enough that gates and heads differ from cell to cell."""
    config = random_config(height, width, tokenizer=False)
    prefix = CaptionPrefix(feature_dim=6, length=7) if captions else config.prefix
    model = build_model(config.model_copy(update={"prefix": prefix}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim != 1:
                parameter.normal_(std=0.3, generator=generator)
    return model


def subject(height: int = 3, width: int = 5, captions: bool = False) -> BenchModel:
    return BenchModel("tiny", make_model(height, width, captions), None, "random weights", False)


def with_tokenizer() -> BenchModel:
    torch.manual_seed(0)
    return replace(subject(), tokenizer=VQTokenizer(TINY_VQ).eval())


def plan(arms: tuple[str, ...] = ARMS, height: int = 3, width: int = 5) -> Plan:
    return Plan((1,), 1, 1, Sampling(cfg_scale=2.0, top_k=5), 0, arms, (Grid(height, width),))


def teacher_forced(model: FlasharModel, tokens: torch.Tensor, conditions: Conditions, order: Order, scale: float):
    """Logits [B, N, V] in the order, with guidance, of a forward without a cache."""
    sequence = order.from_raster(tokens)
    with torch.no_grad():
        cond = model(sequence, conditions, order).logits
        drop = torch.ones(len(tokens), dtype=torch.bool)
        return cond if scale == 1 else guide(cond, model(sequence, conditions, order, drop).logits, scale)


@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
@pytest.mark.parametrize("scale", (1.0, 2.0))
def test_logits_are_those_of_the_teacher_forced_forward(scale: float, captions: bool) -> None:
    model = make_model(3, 5, captions)
    conditions = model.prefix.example(2, 0)
    if captions:
        conditions.tensors["mask"][0, :5] = 0  # a short caption beside a long one
    tokens = torch.randint(32, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    engine, sampling = Engine(model), Sampling(cfg_scale=scale, temperature=0)
    for decoder in (RASTER, FLASHAR):
        found = engine.teacher_forced(decoder, conditions, sampling, tokens)
        expected = teacher_forced(model, tokens, conditions, decoder.order(model.config, Grid(3, 5)), scale)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), GRIDS)
@pytest.mark.parametrize("captions", (False, True), ids=("class", "captions"))
def test_float32_agrees_with_itself_to_the_last_bit(height: int, width: int, captions: bool) -> None:
    benched, chosen = subject(height, width, captions), plan(height=height, width=width)
    found = references(benched, chosen)
    for reference in found.values():
        assert reference.tokens.shape == (1, height, width)
        assert reference.logits.shape == (1, height * width, 32)
    for agreement in agreements(benched, chosen, found):
        assert agreement.num_cells == height * width and agreement.grid == f"{height}x{width}"
        assert agreement.greedy_agreement == agreement.drawn_agreement == 1.0
        assert agreement.mean_abs_difference == agreement.max_abs_difference == 0.0


def test_another_head_gives_the_numbers_by_hand() -> None:
    """Two rows of the head change places: so do two logits of every raster prediction."""
    benched, chosen = subject(), plan(arms=("raster-eager",))
    reference = references(benched, chosen)["raster"]
    tokens, logits = reference.tokens.flatten(), reference.logits[0]
    assert torch.equal(logits.argmax(-1), tokens), "what is drawn greedily is the argmax of what is predicted"
    first, second = int(tokens[0]), int(tokens[1:][tokens[1:] != tokens[0]][0])
    exchanged = torch.arange(32)
    exchanged[first], exchanged[second] = second, first
    head = benched.model.backbone.head.weight
    head.data = head.data[exchanged]

    (agreement,) = agreements(benched, chosen, {"raster": reference})
    differences = (logits[:, exchanged] - logits).abs()
    moved = (tokens == first) | (tokens == second)
    assert agreement.greedy_agreement == pytest.approx(1 - moved.double().mean().item())
    assert agreement.mean_abs_difference == pytest.approx(differences.mean().item(), rel=1e-4)
    assert agreement.max_abs_difference == pytest.approx(differences.max().item(), rel=1e-4)
    assert agreement.drawn_agreement <= 1 - 1 / 15, "the first token is another one already"


@pytest.mark.parametrize(("dtype", "scheme"), [(torch.bfloat16, None), (torch.float32, "int8"), (torch.float32, "fp8")])
def test_fewer_bits_are_seen_and_little(dtype: torch.dtype, scheme: str | None) -> None:
    if scheme is not None:
        pytest.importorskip("torchao")
    benched, chosen = subject(4, 4), plan(height=4, width=4)
    found = references(benched, chosen)
    cast = converted(benched, dtype, scheme)  # type: ignore[arg-type]
    assert (cast.model.dtype, cast.quantize, is_quantized(cast.model)) == (dtype, scheme, scheme is not None)
    for agreement in agreements(cast, chosen, found):
        largest = max(reference.logits.abs().max().item() for reference in found.values())
        assert 0 < agreement.mean_abs_difference < agreement.max_abs_difference < 0.3 * largest
        assert agreement.greedy_agreement > 0.5
    with pytest.raises(AssertionError, match="plain float32"):
        references(cast, chosen)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="packed weights are oneDNN's")
def test_logits_are_those_of_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level whose products are a little too large is seen to be that; the model is afterwards as it was."""
    monkeypatch.setattr(forwards, "_packed_linear", lambda linear, packed, x: 1.0001 * F.linear(x, linear.weight))
    benched = subject(4, 4)
    chosen = plan(("flashar-eager", "flashar-packed", "upstream"), 4, 4)
    eager, packed = agreements(benched, chosen, references(benched, chosen))
    assert (eager.arm, packed.arm) == ("flashar-eager", "flashar-packed")
    assert eager.max_abs_difference == 0 < packed.max_abs_difference < 0.1
    assert all("forward" not in module.__dict__ for module in benched.model.modules())


def test_pixels_are_counted_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the arm's image one channel of one pixel is 2 of 255 brighter, one pixel is darker by 5 in all channels."""
    benched, chosen = with_tokenizer(), plan(arms=("raster-eager",))
    reference = references(benched, chosen)["raster"]
    assert reference.image is not None and reference.image.shape == (1, 12, 20, 3)
    changed = reference.image.astype(np.int64)
    changed[0, 2, 7, 1] += 2
    changed[0, 5, 0] -= 5
    assert changed.min() >= 0 and changed.max() <= 255, "the random image is far from black and white"
    monkeypatch.setattr(Engine, "pixels", lambda self, tokens, grid: from_uint8(changed.astype(np.uint8)))
    (agreement,) = agreements(benched, chosen, {"raster": reference})
    assert agreement.pixels is not None
    psnr_db = 10 * np.log10(255**2 / ((2**2 + 3 * 5**2) / (12 * 20 * 3)))
    assert agreement.pixels.model_dump() == {
        "dtype": "float32",
        "num_pixels": 240,
        "num_differing_pixels": 2,
        "max_difference": 5,
        "psnr_db": pytest.approx(psnr_db),
    }
    header, ((*_, dtype, share, largest, psnr),) = tables.agreements([agreement])
    assert len(header) == 9
    assert (dtype, share, largest, psnr) == ("float32", "0.83%", "5 of 255", f"{psnr_db:.1f}")
    monkeypatch.setattr(Engine, "pixels", lambda self, tokens, grid: torch.full((1, 3, 12, 20), torch.nan))
    with pytest.raises(FlasharError, match="pixels in float32 are not finite"):
        agreements(benched, chosen, {"raster": reference})


def test_pixels_in_float32_are_those_of_the_tokenizer_to_rounding() -> None:
    benched, chosen = with_tokenizer(), plan()
    for agreement in agreements(benched, chosen, references(benched, chosen)):
        assert agreement.pixels is not None and agreement.pixels.max_difference <= 1
    (without, *_) = agreements(subject(), chosen, references(subject(), chosen))
    assert without.pixels is None and len(tables.agreements([without])[0]) == 5


def test_a_level_that_would_fall_back_and_infinite_logits_are_one_line() -> None:
    benched, chosen = subject(), plan(arms=("flashar-graph",))
    found = references(benched, chosen)
    with pytest.raises(FlasharError, match="CUDA graphs need a CUDA device"):
        agreements(benched, chosen, found)
    chosen = replace(chosen, arms=("flashar-eager",))
    with torch.no_grad():
        benched.model.backbone.head.weight[3, 3] = torch.inf
    with pytest.raises(FlasharError, match="flashar-eager has logits that are not finite"):
        agreements(benched, chosen, found)


def test_agreements_are_in_the_report_and_take_time() -> None:
    benched, chosen = subject(), plan()
    found = agreements(benched, chosen, references(benched, chosen))
    report = run.bench(benched, chosen, RATES, agreements=found)
    assert [agreement.arm for agreement in report.agreements] == list(ARMS)
    assert type(report).model_validate_json(report.model_dump_json()) == report
    assert run.bench(benched, chosen, RATES).agreements == ()
    one, two = (expected_agreement_s(benched, chosen, arms) for arms in (ARMS[:1], ARMS[:1] * 20))
    assert 0 < one < two
    assert expected_agreement_s(benched, chosen, ()) == 0
