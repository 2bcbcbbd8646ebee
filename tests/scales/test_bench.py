"""A bench of a next-scale model: what skipping and pruning bring, by scale, beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.reports.document import BenchReport, headline_of
from flashar_cli.benchmarking.reports.pages import as_html, as_markdown
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import NextScaleConfig, Pruning, Sampling
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import build_tokenizer
from tests.benchmarking.test_run import RATES
from tests.tiny_models import build_scale_model, infinity_like_config, var_like_config

PRUNING = Pruning(ratios=((3, 0.5),), num_scales=4)
ARMS = ("scale-eager", "truncate-eager", "fastvar-eager")
QUICK = ("--repeats", 1, "--warmup", 1, "--json")


def subject_of(config: NextScaleConfig) -> BenchModel:
    pruned = config.with_fastvar(PRUNING)
    tokenizer = build_tokenizer(config.tokenizer).eval().requires_grad_(False)
    return BenchModel("tiny", build_scale_model(pruned), tokenizer, "random weights", False)


@pytest.fixture(scope="module")
def report() -> BenchReport:
    benched = subject_of(infinity_like_config())
    grids = (Grid(7, 4), Grid(5, 3))
    return run.bench(benched, Plan((1, 2), 2, 1, Sampling(cfg_scale=2.0), 0, ARMS, grids), RATES)


def test_every_arm_is_timed_by_scale(report: BenchReport) -> None:
    assert [(batch.grid, batch.batch_size) for batch in report.batches] == [
        ("7x4", 1), ("7x4", 2), ("5x3", 1), ("5x3", 2),
    ]  # fmt: skip
    for batch in report.batches:
        scales = 5 if batch.grid == "7x4" else 4
        assert [arm.forwards_per_image for arm in batch.arms] == [scales, 4, 4]
        for arm in batch.arms:
            assert arm.step_s is not None and len(arm.step_s) == arm.forwards_per_image
            assert sum(arm.step_s) < arm.prefix_s.p75_s + arm.decode_s.p75_s


def test_what_skipping_and_pruning_bring_stands_side_by_side(report: BenchReport) -> None:
    batch = report.batches[0]
    scale, truncate, fastvar = batch.arms
    assert [(ratio.arm, ratio.over) for ratio in batch.speedups] == [
        ("truncate-eager", "scale-eager"),
        ("fastvar-eager", "scale-eager"),
        ("fastvar-eager", "truncate-eager"),
    ]
    assert headline_of(batch.arms) == ("fastvar-eager", "scale-eager")
    assert batch.speedup == batch.speedups[1].token_generation
    assert scale.floor_s > truncate.floor_s >= fastvar.floor_s
    assert (report.model.branch, report.model.branch_added) == (None, False)
    assert report.model.fastvar == "drops 50% of scale 3 in layers 0 to last, cached at scale 2; decodes 4 scales"
    for page in (as_markdown(report), as_html(report)):
        assert "drops 50% of scale 3" in page and "fastvar-eager" in page and "Milliseconds of each scale" in page


def test_through_the_command(run_cli: Callable, write_scale_checkpoint: Callable[..., Path]) -> None:
    model = write_scale_checkpoint(var_like_config())
    options = ("--fastvar-ratios", "3:0.5", "--fastvar-scales", 4, "--fastvar-layers", "1:2", "--agreement")
    done = run_cli("bench", model, *options, *QUICK)
    assert done.code == 0, done.err
    found = BenchReport.model_validate(json.loads(done.out))
    assert found.settings.arms == ARMS
    assert found.model.fastvar == "drops 50% of scale 3 in layers 1 to 2, cached at scale 2; decodes 4 scales"
    for agreed in found.agreements:
        assert agreed.greedy_agreement == agreed.drawn_agreement == 1.0
        assert agreed.pixels is not None and agreed.pixels.max_difference <= 1


def test_shapes_with_random_weights(run_cli: Callable, write_scale_checkpoint: Callable[..., Path]) -> None:
    """Of a grid beyond the published ones, where what is left out stays as far from the end, and with fewer blocks."""
    model = write_scale_checkpoint(infinity_like_config().with_fastvar(PRUNING))
    done = run_cli("bench", model, "--random-weights", "--res", 16, "--layers", 2, *QUICK)
    assert done.code == 0, done.err
    found = BenchReport.model_validate(json.loads(done.out))
    assert found.model.name.endswith("2 of 3 layers") and found.model.grid == "8x8"
    assert [arm.forwards_per_image for arm in found.batches[0].arms] == [6, 5, 5]
    assert found.model.fastvar is not None and "50% of scale 4" in found.model.fastvar


@pytest.mark.parametrize(
    ("options", "words"),
    (
        (("--arms", "raster-eager"), "--decoder raster takes one token after the other; this model predicts whole"),
        (("--arms", "fastvar-eager"), "--decoder fastvar needs to know which tokens to drop"),
        (("--arms", "truncate-eager"), "--decoder truncate needs to know which scales to skip"),
        (("--arms", "scale-flex"), "--arms names scale-flex, which is for cuda devices"),
        (("--res", "16"), "--res 16 is a grid of 8x8 tokens: the grid is 8x8, for which this model has no schedule"),
        (("--res", "12,16", "--random-weights"), "there is no schedule for 8x8; make images of that grid alone"),
        (("--fastvar", "infinity-released"), "layer 27 is to drop tokens; this model has layers 0 to 2"),
        (("--fastvar-ratios", "5:0.5"), "scale 5 is to be pruned; this model has scales 0 to 4"),
        (("--fastvar-ratios", "3:1"), "what is asked of FastVAR is not possible: ratios.0.1"),
        (("--fastvar-ratios", "3"), "--fastvar-ratios is '3'; expected SCALE:SHARE"),
        (("--fastvar-ratios", "3:0.5", "--fastvar-cached-scale", 3), "expected scales after cached_scale 3"),
        (("--fastvar-layers", "2"), "--fastvar-layers is '2'; expected FIRST:LAST"),
        (("--fastvar-layers", "2:1"), "last_layer 1 is before first_layer 2"),
        (("--fastvar-scales", 0), "--fastvar-scales"),
    ),
)
def test_bad_input_is_one_line(
    run_cli: Callable, write_scale_checkpoint: Callable[..., Path], options: tuple, words: str
) -> None:
    done = run_cli("bench", write_scale_checkpoint(infinity_like_config()), *options, *QUICK)
    assert done.code == 2 and words in done.err.splitlines()[-1], done.err


def test_fastvar_of_a_raster_model_is_one_line(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    done = run_cli("bench", write_tiny_checkpoint(), "--fastvar", "infinity-released", *QUICK)
    assert done.code == 2 and "FastVAR drops tokens of whole maps" in done.err.splitlines()[-1]


def test_graphs_and_steps_are_not_timed_together() -> None:
    """A level that captures graphs has its scales in one graph; on a CPU none is captured."""
    benched = subject_of(var_like_config())
    plan = Plan((1,), 1, 1, Sampling(), 0, ("scale-packed",), (Grid(3, 5),))
    (arm,) = run.bench(benched, replace(plan, repeats=2), RATES).batches[0].arms
    assert arm.step_s is not None and len(arm.step_s) == 5
