"""Names of arms, what they launch, and batch sizes up to the limit of memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flashar_cli.benchmarking import arms, run, sweep
from flashar_cli.benchmarking.launches import OperatorCounter
from flashar_cli.benchmarking.memory import ArmMemory
from flashar_cli.benchmarking.plan import example_conditions, num_runs
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine import free_bytes
from flashar_cli.nn.sampling import SamplingParams
from tests.benchmarking.test_run import RATES, plan, subject

CPU = torch.device("cpu")
FOUR_ARMS = ("raster-packed", "flashar-packed", "raster-eager", "flashar-eager")


def test_without_names_both_decoders_run_eagerly() -> None:
    assert arms.choose_arms(None, CPU, False) == ("raster-eager", "flashar-eager")
    assert arms.choose_arms(None, CPU, True) == ("upstream", "raster-eager", "flashar-eager")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raster-quick", "'raster-quick'; expected some of raster-eager"),
        ("", "expected some of"),
        ("raster", "expected some of"),
        ("raster-eager,raster-eager", "each arm once"),
        ("upstream", "--upstream DIR"),
        ("raster-graph", "raster-graph, which is for cuda devices; this one is cpu"),
    ],
)
def test_bad_arms_are_one_line(text: str, message: str) -> None:
    with pytest.raises(FlasharError, match=message):
        arms.choose_arms(text, CPU, False)


def test_speedups_compare_the_same_level() -> None:
    names = ("raster-eager", "flashar-packed", "flashar-eager")
    batch = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0]
    assert [(ratio.arm, ratio.over) for ratio in batch.speedups] == [("flashar-eager", "raster-eager")]
    assert batch.best_level == "eager"


@pytest.mark.parametrize("names", [FOUR_ARMS, FOUR_ARMS[::-1], FOUR_ARMS[2:] + FOUR_ARMS[:2]])
def test_the_headline_is_of_the_level_at_which_flashar_is_fastest(names: tuple[str, ...]) -> None:
    batch = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0]
    times = {arm.name: arm.token_generation_s.median_s for arm in batch.arms}
    best = min(("eager", "packed"), key=lambda level: times[f"flashar-{level}"])
    assert batch.best_level == best
    assert batch.speedup == pytest.approx(times[f"raster-{best}"] / times[f"flashar-{best}"])


@pytest.mark.parametrize("decoder", arms.DECODERS)
def test_packed_weights_draw_the_same_tokens(decoder: str) -> None:
    bench_model = subject()
    order = choose_order(bench_model.model, decoder)
    conditions, params = example_conditions(bench_model.model.config, 2, 0), SamplingParams(cfg_scale=2.0)
    uniform = torch.rand(2, len(order.cells), generator=torch.Generator().manual_seed(0))
    marks: list[int] = []
    drawn = []
    for level in ("eager", "packed"):
        sampler = arms.prepare(bench_model, level, order, conditions, params, uniform)
        drawn.append(sampler.draw(lambda: marks.append(1)))
    assert torch.equal(*drawn) and len(marks) == 2


def test_a_level_that_would_fall_back_is_refused() -> None:
    bench_model = subject()
    order = choose_order(bench_model.model, "raster")
    conditions = example_conditions(bench_model.model.config, 1, 0)
    with pytest.raises(FlasharError, match="CUDA graphs need a CUDA device"):
        arms.prepare(bench_model, "graph", order, conditions, SamplingParams(), torch.zeros(1, len(order.cells)))


def test_one_arm_alone_has_no_speedup() -> None:
    batch = run.bench(subject(), replace(plan(repeats=1), arms=("flashar-eager",)), RATES).batches[0]
    assert batch.speedup is None and batch.speedups == ()


def test_operators_are_counted_without_views() -> None:
    with OperatorCounter() as counter:
        x = torch.ones(4, 4)
        (x.view(16).view(2, 8) + 1).sum()
    assert counter.count == 3
    with torch.inference_mode(), OperatorCounter() as counter:  # nothing is taken apart before it is counted
        x.float().reshape(2, 8)
        assert counter.count == 0
        x.double().t().reshape(16)
    assert counter.count == 2


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
    assert num_runs(replace(plan(repeats=1), grids=grids)) == 12


def test_sweep_stops_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    benched, params = subject(), SamplingParams(cfg_scale=1.5)
    grid = benched.model.config.order_grid
    each = sweep.bytes_per_image(benched, grid, params, 2)
    assert each > sweep.bytes_per_image(replace(benched, tokenizer=None), grid, params, 2), "pictures take memory"
    assert each > sweep.bytes_per_image(benched, grid, SamplingParams(), 2), "guidance doubles the rows"
    monkeypatch.setattr(sweep, "free_bytes", lambda device: 11 * each)
    assert sweep.sizes_that_fit(benched, params, (), 2)[0] == (1, 2, 4, 8)
    monkeypatch.setattr(sweep, "free_bytes", lambda device: 0)
    sizes, end = sweep.sizes_that_fit(benched, params, (), 2)
    assert sizes == (1,) and "batch 2" in end


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("x: can't allocate memory: you tried")])
def test_running_out_of_memory_ends_the_batch_sizes(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    real = run.example_conditions

    def small_memory(config, batch_size, seed):  # type: ignore[no-untyped-def]
        if batch_size > 2:
            raise error
        return real(config, batch_size, seed)

    monkeypatch.setattr(run, "example_conditions", small_memory)
    chosen, kept = plan((1, 2, 4, 8), repeats=1), []
    report = run.bench(subject(), chosen, RATES, on_batch=kept.append)
    assert [batch.batch_size for batch in report.batches] == [1, 2]
    assert report.sweep_end == "out of memory at batch 4 on 3x5 tokens"
    assert [len(each.batches) for each in kept] == [1, 2]
    with pytest.raises(FlasharError, match="out of memory at batch 4 on 3x5 tokens; use smaller --batch-sizes"):
        run.bench(subject(), replace(chosen, batch_sizes=(4,)), RATES)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "prepared", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run.bench(subject(), plan(repeats=1), RATES)


def test_what_cannot_fit_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    benched = subject()
    each = sweep.bytes_per_image(benched, benched.model.config.order_grid, plan().params, 2)
    monkeypatch.setattr(sweep, "free_bytes", lambda device: 5 * each)
    sweep.refuse_what_cannot_fit(benched, plan((1, 5)))
    with pytest.raises(FlasharError, match="--batch-sizes has 6, .* enough for 5"):
        sweep.refuse_what_cannot_fit(benched, plan((6, 1)))


class CountedMemory:
    """What torch.cuda tells of memory, from a script of allocations."""

    def __init__(self) -> None:
        self.held = self.peak = 0

    def hold(self, num_bytes: int) -> None:
        self.held += num_bytes
        self.peak = max(self.peak, self.held)


def test_memory_of_an_arm_leaves_the_other_arms_out(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CountedMemory()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: counter.held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: counter.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(counter, "peak", counter.held))
    counter.hold(1000)  # weights
    first, second = (ArmMemory(torch.device("cuda")) for _ in range(2))
    with first.counted(keeps=True):
        counter.hold(50)
        counter.hold(-20)
    with second.counted(keeps=True):
        counter.hold(400)
    assert (first.peak_bytes, second.peak_bytes) == (1050, 1400)
    for arm, own in ((first, 100), (second, 1)):
        with arm.counted():
            counter.hold(own)
            counter.hold(-own)
    assert (first.peak_bytes, second.peak_bytes) == (1000 + 30 + 100, 1401)


def test_free_memory_of_this_machine() -> None:
    assert 2**20 < free_bytes(CPU) < 2**50


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
    with pytest.raises(FlasharError, match="out of memory at batch 1 on 3x5 tokens"):
        run.bench(subject(), chosen, RATES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("decoder", arms.DECODERS)
def test_forwards_of_a_graph_are_counted_while_it_is_captured(decoder: str) -> None:
    benched = subject(4, 4)
    benched.model.cuda()
    assert benched.tokenizer is not None
    benched.tokenizer.cuda()
    order = choose_order(benched.model, decoder)
    conditions = example_conditions(benched.model.config, 1, 0).to(benched.model.device)
    uniform = torch.rand(1, 16, device="cuda")
    sampler = arms.prepare(benched, "graph", order, conditions, SamplingParams(), uniform)
    assert sampler.forwards == order.num_steps
