"""Names of arms, what they launch, and batch sizes up to the limit of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flashar_cli.benchmarking import arms, run, sweep
from flashar_cli.benchmarking.launches import OperatorCounter
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.nn.sampling import SamplingParams
from tests.benchmarking.test_run import RATES, plan, subject

CPU = torch.device("cpu")


def test_default_is_the_best_level_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arms.choose_arms(None, CPU, False) == ("raster-eager", "flashar-eager")
    assert arms.choose_arms(None, CPU, True) == ("upstream", "raster-eager", "flashar-eager")
    monkeypatch.setitem(arms.LEVELS, "fast", arms.Level(arms.eager, lambda device: None))
    monkeypatch.setitem(arms.LEVELS, "gpu-only", arms.Level(arms.eager, lambda device: "needs CUDA"))
    assert arms.choose_arms(None, CPU, False) == ("raster-fast", "flashar-fast")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raster-quick", "'raster-quick'; expected some of raster-eager"),
        ("", "expected some of"),
        ("raster", "expected some of"),
        ("raster-eager,raster-eager", "each arm once"),
        ("upstream", "--upstream DIR"),
        ("raster-captured", "raster-captured, which this machine can't have: no graphs here"),
    ],
)
def test_bad_arms_are_one_line(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setitem(arms.LEVELS, "captured", arms.Level(arms.eager, lambda device: "no graphs here"))
    with pytest.raises(FlasharError, match=message):
        arms.choose_arms(text, CPU, False)


def test_speedups_compare_the_same_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level is one entry of the table; the headline is the best level that both decoders ran at."""
    monkeypatch.setitem(arms.LEVELS, "other", arms.Level(arms.eager, lambda device: None))
    names = ("raster-eager", "flashar-other", "flashar-eager")
    batch = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0]
    assert [(ratio.arm, ratio.over) for ratio in batch.speedups] == [("flashar-eager", "raster-eager")]
    assert batch.best_level == "eager"

    names = ("raster-other", *names)
    batch = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0]
    assert [ratio.arm for ratio in batch.speedups] == ["flashar-eager", "flashar-other"]
    times = {arm.name: arm.token_generation_s.median_s for arm in batch.arms}
    assert batch.speedup == pytest.approx(times["raster-other"] / times["flashar-other"])


@pytest.mark.parametrize("decoder", arms.DECODERS)
def test_packed_weights_draw_the_same_tokens(decoder: str) -> None:
    bench_model = subject()
    order = choose_order(bench_model.model, decoder)
    conditions, params = run.example_conditions(bench_model.model.config, 2, 0), SamplingParams(cfg_scale=2.0)
    uniform = torch.rand(2, len(order.cells), generator=torch.Generator().manual_seed(0))
    marks: list[int] = []
    drawn = []
    for level in ("eager", "packed"):
        sampler = arms.LEVELS[level].prepare(bench_model, order, conditions, params, uniform)
        drawn.append(sampler.draw(lambda: marks.append(1)))
    assert torch.equal(*drawn) and len(marks) == 2


def test_a_level_that_would_fall_back_is_refused() -> None:
    bench_model = subject()
    order = choose_order(bench_model.model, "raster")
    conditions = run.example_conditions(bench_model.model.config, 1, 0)
    with pytest.raises(FlasharError, match="CUDA graphs need a CUDA device"):
        arms.LEVELS["graph"].prepare(bench_model, order, conditions, SamplingParams(), torch.zeros(1, len(order.cells)))
    with pytest.raises(FlasharError, match="can't have: it is for cuda devices"):
        arms.choose_arms("raster-graph", CPU, False)


def test_one_arm_alone_has_no_speedup() -> None:
    batch = run.bench(subject(), replace(plan(repeats=1), arms=("flashar-eager",)), RATES).batches[0]
    assert batch.speedup is None and batch.speedups == ()


def test_operators_are_counted_without_views() -> None:
    with OperatorCounter() as counter:
        x = torch.ones(4, 4)
        (x.view(16).view(2, 8) + 1).sum()
    assert counter.count == 3


def test_launches_grow_with_the_forwards() -> None:
    batch = run.bench(subject(4, 4), plan(repeats=1), RATES).batches[0]
    raster, flashar = batch.raster.launches, batch.flashar.launches
    assert raster is not None and flashar is not None
    assert raster.unit == "operators" and raster.num_kernels is None
    assert raster.count > flashar.count > 7 * 10


def test_several_grids_in_one_report() -> None:
    grids = (Grid(2, 2), Grid(4, 4))
    report = run.bench(subject(), replace(plan(repeats=1), grids=grids), RATES)
    assert report.model.grid == "2x2, 4x4"
    assert [(batch.grid, batch.flashar.forwards_per_image) for batch in report.batches] == [("2x2", 3), ("4x4", 7)]
    assert run.num_runs(replace(plan(repeats=1), grids=grids)) == 8


def test_sweep_stops_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    benched, params = subject(), SamplingParams(cfg_scale=1.5)
    grid = benched.model.config.order_grid
    each = sweep.bytes_per_image(benched, grid, params, 2)
    assert each > sweep.bytes_per_image(benched, grid, SamplingParams(), 2), "guidance doubles the rows"
    monkeypatch.setattr(sweep, "free_bytes", lambda device: 11 * each)
    assert sweep.sizes_that_fit(benched, params, (), 2)[0] == (1, 2, 4, 8)
    monkeypatch.setattr(sweep, "free_bytes", lambda device: 0)
    sizes, end = sweep.sizes_that_fit(benched, params, (), 2)
    assert sizes == (1,) and "batch 2" in end


def test_running_out_of_memory_ends_a_sweep_and_fails_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.example_conditions

    def small_memory(config, batch_size, seed):  # type: ignore[no-untyped-def]
        if batch_size > 2:
            raise torch.OutOfMemoryError("full")
        return real(config, batch_size, seed)

    monkeypatch.setattr(run, "example_conditions", small_memory)
    chosen = plan((1, 2, 4), repeats=1)
    with pytest.raises(FlasharError, match="a batch of 4 on 3x5 tokens"):
        run.bench(subject(), chosen, RATES)
    report = run.bench(subject(), replace(chosen, sweep_end="estimated"), RATES)
    assert [batch.batch_size for batch in report.batches] == [1, 2]
    assert report.sweep_end == "out of memory at batch 4 on 3x5 tokens"


def test_free_memory_of_this_machine() -> None:
    assert 2**20 < sweep.free_bytes(CPU) < 2**50


def test_launches_of_compiled_code_are_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts operators would have PyTorch run compiled code as it was before."""
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: forward)
    names = ("flashar-eager", "flashar-compile")
    eager, compiled = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0].arms
    assert eager.launches is not None and compiled.launches is None
    assert compiled.forwards_per_image == eager.forwards_per_image


def test_running_out_of_memory_while_preparing_is_not_a_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a sweep of batch sizes with what was measured so far."""

    def compiler(forward: object, **settings: object) -> object:
        def fail(*args: object) -> None:
            raise torch.OutOfMemoryError("full")

        return fail

    monkeypatch.setattr(torch, "compile", compiler)
    chosen = replace(plan((1, 2), repeats=1), arms=("flashar-compile",))
    with pytest.raises(FlasharError, match="a batch of 1 on 3x5 tokens does not fit into memory"):
        run.bench(subject(), chosen, RATES)
