"""Names of arms, what they launch, and what happens where memory ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flashar_cli.benchmarking import arms, run
from flashar_cli.benchmarking.plan import Batch
from flashar_cli.benchmarking.reports.document import headline_of
from flashar_cli.config import DiffusionConfig, ModelConfig, Pruning
from flashar_cli.decoding.decoders import DECODERS
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.machine.launches import OperatorCounter
from flashar_cli.machine.memory import free_bytes
from flashar_cli.machine.peaks import ArmMemory
from flashar_cli.models.prefix.by_class import ClassEmbedder
from tests.benchmarking.test_run import RATES, arm_of, plan, subject
from tests.tiny_models import infinity_like_config, random_config

CPU = torch.device("cpu")
FOUR_ARMS = ("raster-packed", "flashar-packed", "raster-eager", "flashar-eager")


def test_without_names_the_decoders_of_the_headline_run_eagerly() -> None:
    assert choose(None) == ("raster-eager", "flashar-eager")
    assert choose(None, with_upstream=True) == ("upstream", "raster-eager", "flashar-eager")
    blocks = random_config(branch=False).model_copy(update={"diffusion": DiffusionConfig(block=4)})
    assert choose(None, config=blocks) == ("block-diffusion:4-eager", "raster-eager")
    scales = infinity_like_config()
    assert choose(None, config=scales) == ("scale-eager",)
    pruned = scales.with_fastvar(Pruning(ratios=((3, 0.5),)))
    assert choose(None, config=pruned) == ("scale-eager", "fastvar-eager")
    pruned = scales.with_fastvar(Pruning(ratios=((3, 0.5),), num_scales=4))
    assert choose(None, config=pruned) == ("scale-eager", "truncate-eager", "fastvar-eager")


def choose(text: str | None, with_upstream: bool = False, config: ModelConfig | None = None) -> tuple[str, ...]:
    names = arms.default_arms(config or random_config(branch=False)) if text is None else tuple(text.split(","))
    return arms.check_arms(names, CPU, with_upstream)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raster-quick", "'raster-quick'; expected upstream or DECODER-LEVEL, of the decoders scale, "),
        ("", "expected upstream or DECODER-LEVEL"),
        ("raster", "expected upstream or DECODER-LEVEL"),
        ("raster-eager,raster-eager", "each arm once"),
        ("upstream", "--upstream DIR"),
        ("raster-graph", "raster-graph, which is for cuda devices; this one is cpu"),
    ],
)
def test_bad_arms_are_one_line(text: str, message: str) -> None:
    with pytest.raises(FlasharError, match=message):
        choose(text)


def test_speedups_compare_the_same_level() -> None:
    names = ("raster-eager", "flashar-packed", "flashar-eager")
    batch = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0]
    assert [(ratio.arm, ratio.over) for ratio in batch.speedups] == [("flashar-eager", "raster-eager")]
    assert headline_of(batch.arms) == ("flashar-eager", "raster-eager")


@pytest.mark.parametrize("names", [FOUR_ARMS, FOUR_ARMS[::-1], FOUR_ARMS[2:] + FOUR_ARMS[:2]])
def test_the_headline_is_of_the_level_at_which_flashar_is_fastest(names: tuple[str, ...]) -> None:
    batch = run.bench(subject(), replace(plan(repeats=1), arms=names), RATES).batches[0]
    times = {arm.name: arm.token_generation_s.median_s for arm in batch.arms}
    best = min(("eager", "packed"), key=lambda level: times[f"flashar-{level}"])
    assert headline_of(batch.arms) == (f"flashar-{best}", f"raster-{best}")
    assert batch.speedup == pytest.approx(times[f"raster-{best}"] / times[f"flashar-{best}"])


@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_packed_weights_sample_the_same_tokens(decoder: str) -> None:
    benched, marks, sampled = subject(), [], []
    batch = Batch.of(plan(cfg_scale=2.0), benched.model, Grid(3, 5), 2)
    for level in ("eager", "packed"):
        sampler = arms.prepare(benched, f"{decoder}-{level}", batch)
        sampled.append(sampler.sample(lambda: marks.append(1)))
    assert torch.equal(*sampled) and len(marks) == 2


def test_a_level_that_would_fall_back_is_refused() -> None:
    benched = subject()
    with pytest.raises(FlasharError, match="CUDA graphs need a CUDA device"):
        arms.prepare(benched, "raster-graph", Batch.of(plan(), benched.model, Grid(3, 5), 1))


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
    batch = run.bench(subject(4, 4), plan(repeats=1, grid=Grid(4, 4)), RATES).batches[0]
    raster, flashar = arm_of(batch, "raster").launches, arm_of(batch, "flashar").launches
    assert raster is not None and flashar is not None
    assert raster.unit == "operators" and raster.num_kernels is None
    assert raster.count > flashar.count > 7 * 10


def test_several_grids_in_one_report() -> None:
    grids = (Grid(2, 2), Grid(4, 4))
    report = run.bench(subject(), replace(plan(repeats=1), grids=grids), RATES)
    assert report.model.grid == "2x2, 4x4"
    forwards = [(batch.grid, arm_of(batch, "flashar").forwards_per_image) for batch in report.batches]
    assert forwards == [("2x2", 3), ("4x4", 7)]
    assert replace(plan(repeats=1), grids=grids).num_runs == 12


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("x: can't allocate memory: you tried")])
def test_running_out_of_memory_ends_the_batch_sizes(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    real = ClassEmbedder.example

    def small_memory(prefix, batch, seed):  # type: ignore[no-untyped-def]
        if batch > 2:
            raise error
        return real(prefix, batch, seed)

    monkeypatch.setattr(ClassEmbedder, "example", small_memory)
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
@pytest.mark.parametrize("decoder", ("raster", "flashar"))
def test_forwards_of_a_graph_are_counted_while_it_is_captured(decoder: str) -> None:
    benched, grid = subject(4, 4), Grid(4, 4)
    benched.model.cuda()
    assert benched.tokenizer is not None
    benched.tokenizer.cuda()
    sampler = arms.prepare(benched, f"{decoder}-graph", Batch.of(plan(), benched.model, grid, 1))
    assert sampler.forwards == DECODERS[decoder].num_forwards(benched.model.config, grid)
