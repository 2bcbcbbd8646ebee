"""The protocol on tiny random models: counts, order of the arms, phases, identity of what both arms decode."""

from __future__ import annotations

import pytest
import torch

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.estimate import expected_s
from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.reports.document import ArmReport, BatchReport, headline_of
from flashar_cli.benchmarking.subject import BenchModel, ensure_branch, random_tokenizer
from flashar_cli.config import CaptionPrefix, Sampling, TextPrefix
from flashar_cli.decoding.engine import Engine
from flashar_cli.grid import Grid
from flashar_cli.machine.rates import Rates
from tests.tiny_models import build_model, random_config

RATES = Rates(copy_bytes_per_s=1e10, matmul_flops_per_s=1e11)
ARMS = ("raster-eager", "flashar-eager")
GRID = Grid(3, 5)


def subject(height: int = 3, width: int = 5, tokenizer: bool = True, branch: bool = True) -> BenchModel:
    config = random_config(height, width, branch=branch, tokenizer=tokenizer)
    model = build_model(config)
    vq = random_tokenizer(config.tokenizer, torch.device("cpu"), 0) if config.tokenizer else None
    return BenchModel("tiny", model, vq, "random weights", ensure_branch(model, 0))


def plan(batch_sizes: tuple[int, ...] = (1,), repeats: int = 2, cfg_scale: float = 1.5, grid: Grid = GRID) -> Plan:
    return Plan(batch_sizes, repeats, 1, Sampling(cfg_scale=cfg_scale), 0, ARMS, (grid,))


def arm_of(batch: BatchReport, decoder: str) -> ArmReport:
    """The arm of a decoder at the level of the headline."""
    names = headline_of(batch.arms) or ()
    return next(arm for arm in batch.arms if arm.decoder == decoder and arm.name in names)


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1), (3, 5), (5, 3), (4, 4)])
def test_forwards_are_counted_while_running(height: int, width: int) -> None:
    batch = run.bench(subject(height, width), plan(repeats=1, grid=Grid(height, width)), RATES).batches[0]
    assert arm_of(batch, "raster").forwards_per_image == height * width
    assert arm_of(batch, "flashar").forwards_per_image == height + width - 1


def test_document_is_consistent() -> None:
    report = run.bench(subject(), plan((1, 3)), RATES)
    assert [batch.batch_size for batch in report.batches] == [1, 3]
    assert report.settings.cfg_scale == 1.5
    assert report.model.branch == "layer 1, depth 1, gate hidden"
    assert not report.model.branch_added
    for batch in report.batches:
        raster, flashar = arm_of(batch, "raster"), arm_of(batch, "flashar")
        assert batch.speedup == pytest.approx(raster.token_generation_s.median_s / flashar.token_generation_s.median_s)
        assert batch.speedup_with_token_decode is not None
        for arm in (raster, flashar):
            assert len(arm.token_generation_s.raw_s) == 2
            assert len(arm.warmup_s) == 1
            assert arm.token_decode_s is not None
            sums = zip(arm.prefix_s.raw_s, arm.decode_s.raw_s, strict=True)
            assert arm.token_generation_s.raw_s == pytest.approx([prefix + decode for prefix, decode in sums])
            assert arm.images_per_s == pytest.approx(batch.batch_size / arm.token_generation_s.median_s)
            assert arm.peak_memory_bytes is None


def test_arms_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made ready and warmed up, timed in turn, and counted at the end, when nothing is timed any more."""
    seen = []
    real = Engine.decode

    def spy(engine, decoder, *rest):  # type: ignore[no-untyped-def]
        seen.append(decoder.name)
        return real(engine, decoder, *rest)

    monkeypatch.setattr(Engine, "decode", spy)
    num_calls = []
    run.bench(subject(), plan(repeats=2), RATES, on_run=lambda: num_calls.append(1))
    assert seen == (1 + 1 + 2 + 1) * ["raster", "flashar"]
    assert len(num_calls) == plan(repeats=2).num_runs == 8


def test_without_tokenizer_there_is_no_token_decode() -> None:
    batch = run.bench(subject(tokenizer=False), plan(), RATES).batches[0]
    assert arm_of(batch, "raster").token_decode_s is None
    assert batch.speedup_with_token_decode is None


def test_base_gets_a_fresh_branch() -> None:
    report = run.bench(subject(branch=False), plan(repeats=1, cfg_scale=1.0), RATES)
    assert report.model.branch_added
    assert arm_of(report.batches[0], "flashar").forwards_per_image == 7


def test_floor_and_share_follow_from_the_rates() -> None:
    arm = arm_of(run.bench(subject(), plan(repeats=1), RATES).batches[0], "raster")
    assert arm.times_floor == pytest.approx(arm.token_generation_s.median_s / arm.floor_s)
    assert arm.share_of_copy == pytest.approx(arm.read_bytes_per_s / RATES.copy_bytes_per_s)


@pytest.mark.parametrize("prefix", (CaptionPrefix(feature_dim=6, length=7), TextPrefix(vocab_size=11, max_length=9)))
def test_floors_count_the_prefix_that_is_there(prefix: CaptionPrefix | TextPrefix) -> None:
    """Its length is that of the examples, and every position of it goes through every block."""
    model = build_model(random_config().model_copy(update={"prefix": prefix}))
    benched = BenchModel("tiny", model, None, "random weights", False)
    report = run.bench(benched, plan((1, 2), repeats=1, grid=Grid(4, 4)), RATES)
    model.prefix.check(model.prefix.example(2, 0))
    length = model.prefix.length(model.prefix.example(2, 0))
    backbone = model.config.backbone
    for batch in report.batches:
        heads = 16 * backbone.head_weights
        products = backbone.num_layers * backbone.block_weights * (length + 15) + heads
        products += prefix.read_weights(backbone.dim) * length
        assert arm_of(batch, "raster").flops == 2 * 2 * batch.batch_size * products


def test_expected_time_is_positive_and_grows_with_the_plan() -> None:
    one, many = (expected_s(subject(), plan(repeats=repeats)) for repeats in (1, 1000))
    assert 0 < one < many


def test_launches_are_counted_where_they_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: at the last batch size alone."""
    monkeypatch.setattr(run, "counts_at", lambda device, is_last: is_last)
    batches = run.bench(subject(), plan((1, 3), repeats=1), RATES).batches
    assert [arm_of(batch, "raster").launches is not None for batch in batches] == [False, True]
