"""Decoders that the package does not know, from --arms to the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.measure import prepared
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.reports.document import BenchReport, headline_of
from flashar_cli.config import RasterConfig, TextPrefix
from flashar_cli.decoding.costs import ForwardCost, Workload
from flashar_cli.decoding.decoder import Plan, PlanKey, StepHook
from flashar_cli.decoding.decoders import DECODERS, get_decoder
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.decoding.static import RASTER, RasterDecoder, StaticDecoder
from flashar_cli.grid import NO_SOURCE, Grid, Order
from flashar_cli.machine.peaks import ArmMemory
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.nn.sampling import uniform_table
from tests.benchmarking.test_run import RATES, plan, subject

QUICK = ("--repeats", 1, "--device", "cpu", "--json")


class ToyPlan:
    """Samples in raster order, token by token, until all images of the batch get an even one, which fills the rest."""

    def __init__(self, inner: DecodePlan) -> None:
        self.key, self.inner = inner.key, inner
        self.load, self.tokens = inner.load, inner.tokens

    def run(self, on_step: StepHook | None = None) -> None:
        inner = self.inner
        inner.sample(0, inner.prefix(), on_step)
        for step in range(1, inner.order.num_steps):
            if bool((inner.tokens_BN[:, step - 1] % 2 == 0).all()):
                inner.tokens_BN[:, step:] = inner.tokens_BN[:, step - 1 : step]
                return
            inner.advance(step, step + 1, on_step)


class Toy(RasterDecoder):
    """As many forwards as the tokens want."""

    name = "toy"

    def obstacle(self, config: RasterConfig) -> str | None:
        return None if config.order_grid.height > 2 else "needs three rows"

    def num_forwards(self, config: RasterConfig, grid: Grid) -> None:
        return None

    def longest_step(self, config: RasterConfig, grid: Grid) -> int:
        return 1

    def plan(self, model: FlasharModel, tokenizer: object, key: PlanKey) -> Plan:
        return ToyPlan(RASTER.plan(model, tokenizer, key))

    def costs(self, config: RasterConfig, work: Workload) -> list[ForwardCost]:
        return RASTER.costs(config, work)[:1]


@pytest.fixture
def toy() -> Iterator[None]:
    """Before the others, so that nothing takes the first for FlashAR."""
    others = dict(DECODERS)
    DECODERS.clear()
    DECODERS.update(toy=Toy(), **others)
    yield
    del DECODERS["toy"]


def bench(run_cli: Callable, *arguments: object) -> BenchReport:
    done = run_cli("bench", *arguments, *QUICK)
    assert done.code == 0, done.err
    return BenchReport.model_validate(json.loads(done.out))


@pytest.mark.usefixtures("toy")
def test_a_data_dependent_decoder_is_an_arm(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    arms = "raster-eager,flashar-eager,toy-eager"
    report = bench(run_cli, write_tiny_checkpoint(height=3, width=5), "--arms", arms, "--agreement")
    (batch,) = report.batches
    named = {arm.name: arm for arm in batch.arms}
    assert (named["toy-eager"].decoder, named["toy-eager"].level) == ("toy", "eager")
    assert 1 <= named["toy-eager"].forwards_per_image <= 15
    assert named["toy-eager"].floor_s < named["raster-eager"].floor_s / 14
    assert [(ratio.arm, ratio.over) for ratio in batch.speedups] == [
        ("flashar-eager", "raster-eager"),
        ("toy-eager", "raster-eager"),
    ]
    assert batch.speedup == batch.speedups[0].token_generation and headline_of(batch.arms) == (
        "flashar-eager",
        "raster-eager",
    )
    raster, _, found = report.agreements
    assert found.arm == "toy-eager" and found.drawn_agreement == 1.0
    assert found.greedy_agreement is found.mean_abs_difference is found.max_abs_difference is None
    assert raster.greedy_agreement == 1.0
    assert found.pixels is not None


@pytest.mark.usefixtures("toy")
def test_a_model_that_has_not_the_decoder(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    done = run_cli("bench", write_tiny_checkpoint(height=2), "--arms", "toy-eager", *QUICK)
    assert (done.code, done.err) == (2, "error: needs three rows\n")


def column_by_column(config: RasterConfig, grid: Grid) -> Order:
    """One cell a step, each predicted by the vertical head of the token before it."""
    cells = [row * grid.width + col for col in range(grid.width) for row in range(grid.height)]
    previous = tuple(range(grid.num_cells))
    return Order("columns", grid, tuple((cell,) for cell in cells), (NO_SOURCE,) * grid.num_cells, previous)


def test_an_order_of_its_own_is_an_arm(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODERS, "by-column", StaticDecoder("by-column", column_by_column))
    model = write_tiny_checkpoint(height=3, width=5)
    report = bench(run_cli, model, "--arms", "raster-eager,by-column-eager", "--agreement")
    raster, own = report.batches[0].arms
    assert (own.decoder, own.level, own.forwards_per_image) == ("by-column", "eager", 15)
    assert own.floor_s > raster.floor_s, "the branch is read too"
    assert report.agreements[1].greedy_agreement == report.agreements[1].drawn_agreement == 1.0
    assert report.batches[0].speedup is None, "the headline is FlashAR's"


def test_a_model_of_prompts_by_its_shape_alone(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    """Nothing here knows the kinds of prefixes: the model makes its own examples."""
    model = write_tiny_checkpoint(branch=False)
    config = json.loads((model / "config.json").read_text())
    config["prefix"] = TextPrefix(vocab_size=11, max_length=9).model_dump()
    (model / "config.json").write_text(json.dumps(config))
    report = bench(run_cli, model, "--random-weights", "--res", "8,16", "--agreement", "--batch-sizes", "1,2")
    assert report.model.branch_added and [arm.drawn_agreement for arm in report.agreements] == [1.0, 1.0]
    forwards = [(batch.grid, [arm.forwards_per_image for arm in batch.arms]) for batch in report.batches]
    assert forwards == [("2x2", [4, 3]), ("2x2", [4, 3]), ("4x4", [16, 7]), ("4x4", [16, 7])]


def test_a_bench_leaves_the_model_as_it_is() -> None:
    benched = subject()
    before = benched.model.config
    report = run.bench(benched, replace(plan(repeats=1), grids=(Grid(4, 2), Grid(2, 2))), RATES)
    assert [batch.grid for batch in report.batches] == ["4x2", "2x2"] and benched.model.config is before


def test_each_run_makes_other_images_where_forwards_depend_on_them() -> None:
    benched, chosen, grid, expected = subject(4, 4), plan(), Grid(4, 4), []
    batch = Batch.of(chosen, benched.model, grid, 1)
    for run_number in range(5):
        steps: list[int] = []
        uniform = uniform_table(chosen.seed, run_number, 1, 16)
        given = (batch.conditions, chosen.sampling, uniform)
        expected.append((Engine(benched.model).decode(get_decoder("jacobi:4"), *given, steps.append, grid), len(steps)))
    names, memory = ("raster-eager", "jacobi:4-eager"), ArmMemory(benched.model.device)
    raster, drafted = (prepared(name, benched, batch, None, memory) for name in names)
    made = drafted.sampler.sample(lambda: None)  # the second: one was made to prepare
    assert torch.equal(made, expected[1][0]) and not torch.equal(made, expected[0][0])
    drafted.warm_up()
    drafted.run()
    drafted.run()
    assert drafted.num_forwards == [forwards for _, forwards in expected[2:]]
    assert torch.equal(raster.sampler.sample(lambda: None), raster.sampler.sample(lambda: None))


def test_decoders_without_training_are_arms(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    """On a grid whose middle step, by which the time is estimated, feeds one of ZipAR's fillers."""
    arms = "raster-eager,naive-eager,zipar:2-eager,jacobi:4-eager"
    report = bench(run_cli, write_tiny_checkpoint(height=4, width=4), "--arms", arms, "--agreement")
    raster, naive, zipped, drafted = report.batches[0].arms
    assert [arm.decoder for arm in (raster, naive, zipped, drafted)] == ["raster", "naive", "zipar:2", "jacobi:4"]
    assert [arm.forwards_per_image for arm in (raster, naive, zipped)] == [16, 7, 2 * 4 + 2 * 2]
    assert 1 + 4 <= drafted.forwards_per_image <= 16
    assert {(ratio.arm, ratio.over) for ratio in report.batches[0].speedups} == {
        (f"{decoder}-eager", "raster-eager") for decoder in ("naive", "zipar:2", "jacobi:4")
    }
    assert all(found.drawn_agreement == 1.0 for found in report.agreements)
