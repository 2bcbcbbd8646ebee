"""The published samplers as an arm: from made-up clones that behave badly, and from real ones where there are some."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.arms import Sampler, prepare
from flashar_cli.benchmarking.estimate import expected_s, roofline
from flashar_cli.benchmarking.plan import Batch, Plan
from flashar_cli.benchmarking.published import AUTOREGRESSIVE, base, decoder_of
from flashar_cli.benchmarking.published.loading import load_upstream
from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.subject import BenchModel, ensure_branch
from flashar_cli.config import BranchConfig, CaptionPrefix, RasterConfig, Sampling, TextPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from tests.benchmarking.published.clones import MODEL, NAR_MODEL, write_clone
from tests.benchmarking.test_run import RATES
from tests.tiny_models import build_model, random_config

ARMS = ("upstream", "raster-eager", "flashar-eager")
GRID = Grid(4, 4)
PLAN = Plan((1, 2), 1, 1, Sampling(cfg_scale=1.5), 0, ARMS, (GRID,))


@dataclass(frozen=True)
class Case:
    """A family: how its sampler decodes on 4x4 tokens, and a tensor of its that is ours."""

    family: str
    decoder: str
    forwards: int
    theirs: str
    ours: str


CASES = [
    pytest.param(Case("llamagen", "raster", 16, "output.weight", "backbone.head.weight"), id="llamagen"),
    pytest.param(Case("nar", "flashar", 7, "medusa_output.weight", "branch.head.weight"), id="nar"),
]


def config_of(family: str, height: int = 4, width: int = 4, **changes: Any) -> RasterConfig:
    config = random_config(height, width)
    backbone = config.backbone.model_copy(update={"num_kv_heads": config.backbone.num_heads})
    config = config.model_copy(update={"backbone": backbone})
    if family == "nar":
        branch = BranchConfig(layer=config.backbone.num_layers, gate="mean")
        config = config.model_copy(update={"family": "nar", "branch": branch})
    return config.model_copy(update=changes)


def subject_of(config: RasterConfig) -> BenchModel:
    model = build_model(config)
    return BenchModel("tiny", model, None, "random weights", ensure_branch(model, 0))


@pytest.mark.parametrize("case", CASES)
def test_upstream_takes_its_turn_on_the_very_weights(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, benched = load_upstream(write_clone(tmp_path, case.family)), subject_of(config_of(case.family))
    capsys.readouterr()
    report = run.bench(benched, PLAN, RATES, upstream=published)
    captured = capsys.readouterr()
    assert captured.out == "" and "a bar" not in captured.err
    assert report.settings.arms == ARMS
    assert report.upstream is not None and report.upstream.num_tokens == 16
    assert set(report.upstream.files_sha256) == set(AUTOREGRESSIVE)
    assert report.upstream.decoder == case.decoder
    assert f"our {case.decoder} decoder sampled" in " ".join(tables.remarks(report))
    for batch in report.batches:
        by_name = {arm.name: arm for arm in batch.arms}
        assert by_name["upstream"].forwards_per_image == case.forwards
        assert by_name["upstream"].floor_s == by_name[f"{case.decoder}-eager"].floor_s
        pairs = {(ratio.arm, ratio.over) for ratio in batch.speedups}
        assert pairs == {
            ("flashar-eager", "raster-eager"),
            ("flashar-eager", "upstream"),
            ("raster-eager", "upstream"),
        }
        assert batch.speedup == pytest.approx(
            by_name["raster-eager"].token_generation_s.median_s / by_name["flashar-eager"].token_generation_s.median_s
        )
    built = published.model(benched, GRID)
    assert built.get_parameter(case.theirs).data_ptr() == benched.model.get_parameter(case.ours).data_ptr()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("changes", "expected"),
    (
        ({}, {"cfg_scale": 1.5, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.9}, {"temperature": 0.5, "top_k": 3, "top_p": 0.9}),
        ({"temperature": 0.0}, {"cfg_scale": 1.5, "temperature": 1.0, "sample_logits": False}),
    ),
)
def test_upstream_is_asked_for_the_same(case: Case, tmp_path: Path, changes: dict, expected: dict) -> None:
    published, benched = load_upstream(write_clone(tmp_path, case.family)), subject_of(config_of(case.family))
    generate, asked = published.sampler.generate, {}
    published.sampler.generate = lambda *given, **named: asked.update(named) or generate(*given, **named)
    plan = replace(PLAN, sampling=PLAN.sampling.changed(**changes))
    published.prepare(benched, Batch.of(plan, benched.model, GRID, 2)).sample(lambda: None)
    assert {name: asked[name] for name in expected} == expected


def test_equal_tokens_are_counted_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published, benched = load_upstream(write_clone(tmp_path)), subject_of(config_of("llamagen"))
    batch = Batch.of(PLAN, benched.model, GRID, 2)
    greedy = replace(batch, sampling=base.greedy_as(batch.sampling))
    ours = prepare(benched, "raster-eager", greedy).sample(lambda: None)
    theirs = ours.clone()
    theirs[0, 1, 2:] += 1
    theirs[1, 3, 3] += 1
    monkeypatch.setattr(published, "prepare", lambda *given: Sampler(lambda mark: theirs, None, 1))
    report = published.check(benched, batch)
    assert (report.num_tokens, report.num_equal_tokens) == (32, 32 - 3)


def test_guidance_that_upstream_does_not_have_is_refused(tmp_path: Path) -> None:
    published = load_upstream(write_clone(tmp_path))
    for changes in ({"cfg_interval": (0.0, 0.5)}, {"cfg_schedule": "linear"}):
        with pytest.raises(FlasharError, match="guide every token alike"):
            published.check_sampling(PLAN.sampling.changed(**changes))


@pytest.mark.parametrize("case", CASES)
def test_roofline_and_estimate_take_upstream_for_the_decoder_it_is_like(case: Case) -> None:
    assert decoder_of("upstream", case.family) == case.decoder
    assert decoder_of("raster-graph", case.family) == "raster"
    benched = subject_of(config_of(case.family))
    _, rows = roofline(benched, PLAN, RATES)
    floors = {row[2]: row[3:] for row in rows if row[1] == "1"}
    assert floors["upstream"] == floors[case.decoder] and floors["upstream"][0] == str(case.forwards)
    assert expected_s(benched, PLAN) > 0


def test_the_clone_or_its_folder_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit is only told of a checkout of the clone itself, not of one around it."""
    monkeypatch.setattr(base, "git", lambda *arguments: "the commit")
    benched = subject_of(config_of("nar"))
    batch = Batch.of(PLAN, benched.model, GRID, 1)
    top = tmp_path / "NAR"
    code = write_clone(top / "NAR-images", "nar")
    (tmp_path / ".git").mkdir()
    assert load_upstream(code).check(benched, batch).commit is None
    (top / ".git").mkdir()
    for directory in (top, code):
        assert load_upstream(directory).check(benched, batch).commit == "the commit"


@pytest.mark.parametrize(("family", "model"), [("llamagen", MODEL), ("nar", NAR_MODEL)])
def test_a_clone_of_another_layout_is_one_line(tmp_path: Path, family: str, model: str) -> None:
    published = load_upstream(write_clone(tmp_path, family, model.replace("self.norm =", "self.other_norm =")))
    with pytest.raises(FlasharError, match="another layout") as caught:
        run.bench(subject_of(config_of(family)), PLAN, RATES, upstream=published)
    assert "\n" not in str(caught.value)


def test_no_clone_at_all(tmp_path: Path) -> None:
    with pytest.raises(FlasharError, match="has no autoregressive"):
        load_upstream(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_what_upstream_can_not_run(case: Case, tmp_path: Path) -> None:
    published = load_upstream(write_clone(tmp_path, case.family))
    published.check_model(config_of(case.family), GRID)
    other = "nar" if case.family == "llamagen" else "llamagen"
    with pytest.raises(FlasharError, match=f"runs {case.family} models; this one is of family {other}; give a clone"):
        published.check_model(config_of(other), GRID)
    with pytest.raises(FlasharError, match="square grids, this one is 3x5; leave --upstream out"):
        published.check_model(config_of(case.family), Grid(3, 5))
    with pytest.raises(FlasharError, match="here are 2 and 4"):
        published.check_model(config_of(case.family, backbone=random_config().backbone), GRID)
    with pytest.raises(FlasharError, match="models of class or caption prefixes, this one's is text"):
        published.check_model(config_of(case.family, prefix=TextPrefix(vocab_size=8)), GRID)
    for changed, words in (({"cfg_scale": 0.5}, "--cfg-scale is 0.5"), ({"min_p": 0.1}, "min_p 0.1, which upstream's")):
        plan = replace(PLAN, sampling=PLAN.sampling.changed(**changed))
        with pytest.raises(FlasharError, match=words):
            run.bench(subject_of(config_of(case.family)), plan, RATES, upstream=published)


@pytest.mark.parametrize(
    ("branch", "got"),
    [
        (BranchConfig(layer=1, gate="mean"), "gate mean at layer 1"),
        (BranchConfig(layer=2, gate="hidden", gate_dim=64), "gate hidden at layer 2"),
        (None, "none"),
    ],
)
def test_nar_runs_its_own_branch_only(branch: BranchConfig | None, got: str, tmp_path: Path) -> None:
    published = load_upstream(write_clone(tmp_path, "nar"))
    with pytest.raises(FlasharError, match=f"gate mean at layer 2, this model's is {got}"):
        published.check_model(config_of("nar", branch=branch), GRID)


def test_family_without_a_published_sampler(tmp_path: Path) -> None:
    config = random_config().model_copy(update={"family": "llamagen-flashar"})
    with pytest.raises(FlasharError, match="of family llamagen-flashar; leave --upstream out"):
        load_upstream(write_clone(tmp_path)).check_model(config, GRID)


@pytest.mark.parametrize(("captions", "cfg_scale"), [(False, 1.5), (False, 1.0), (True, 1.5)])
@pytest.mark.parametrize(("family", "variable"), [("llamagen", "LLAMAGEN_CLONE"), ("nar", "NAR_CLONE")])
def test_the_real_sampler_draws_what_ours_draws(family: str, variable: str, captions: bool, cfg_scale: float) -> None:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no clone")
    config = config_of(family, **({"prefix": CaptionPrefix(feature_dim=6, length=120)} if captions else {}))
    benched, published = subject_of(config), load_upstream(Path(os.environ[variable]))
    with torch.no_grad():  # large enough that the best token is not the same everywhere
        for parameter in benched.model.parameters():
            parameter *= 8 if parameter.ndim > 1 else 1
    plan = replace(PLAN, sampling=Sampling(cfg_scale=cfg_scale, temperature=0.0))
    batch = Batch.of(plan, benched.model, GRID, 2)
    if captions:
        batch.conditions.tensors["mask"][0, :100] = 0  # a short caption beside one of full length
    report = published.check(benched, batch)
    assert (report.num_tokens, report.num_equal_tokens) == (32, 32)
    sampled = published.prepare(benched, batch).sample(lambda: None)
    assert len(sampled.unique()) > 4
