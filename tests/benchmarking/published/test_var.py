"""VAR's sampler as an arm: from a made-up clone, and from a real one where there is one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.plan import Batch, Plan
from flashar_cli.benchmarking.published.loading import load_upstream
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import MultiScaleVQConfig, NextScaleConfig, Sampling, SchedulesConfig
from flashar_cli.errors import FlasharError
from flashar_cli.grid import Grid
from flashar_cli.tokenizers import build_tokenizer
from tests.benchmarking.published.clones import write_clone
from tests.benchmarking.test_run import RATES
from tests.tiny_models import build_scale_model, var_like_config

GRID = Grid(3, 3)
ARMS = ("upstream", "scale-eager")
SAMPLING = Sampling(cfg_scale=2.5, cfg_schedule="linear")
PLAN = Plan((1, 2), 1, 1, SAMPLING, 0, ARMS, (GRID,))


def config_of(**changes: object) -> NextScaleConfig:
    own = {
        "transformer": {**var_like_config().transformer.model_dump(), "ffn_dim": 64, "num_levels": 3},
        "schedules": SchedulesConfig(longest=(((1, 1), (2, 2), (3, 3)),), lengths=(3,)).model_dump(),
        "grid": {"height": 3, "width": 3},
        "tokenizer": MultiScaleVQConfig(codebook_size=32, codebook_dim=4, channels=32).model_dump(),
    }
    return NextScaleConfig.model_validate({**var_like_config().model_dump(), **own, **changes})


def subject_of(config: NextScaleConfig) -> BenchModel:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.tokenizer).eval().requires_grad_(False)
    return BenchModel("tiny", build_scale_model(config), tokenizer, "random weights", False)


def test_upstream_takes_its_turn_on_the_very_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published, benched = load_upstream(write_clone(tmp_path, "var")), subject_of(config_of())
    capsys.readouterr()
    report = run.bench(benched, PLAN, RATES, upstream=published)
    assert capsys.readouterr().out == ""
    assert report.upstream is not None and report.upstream.num_tokens == 14 and report.upstream.decoder == "scale"
    assert report.upstream.repository == "FoundationVision/VAR"
    for batch in report.batches:
        theirs, ours = batch.arms
        assert theirs.forwards_per_image == ours.forwards_per_image == 3
        assert theirs.step_s is not None and len(theirs.step_s) == 3
        assert [(ratio.arm, ratio.over) for ratio in batch.speedups] == [("scale-eager", "upstream")]
    built = published.model(benched, GRID)
    assert built.get_parameter("head.weight").data_ptr() == benched.model.get_parameter("head.out.weight").data_ptr()


def test_what_upstream_can_not_run(tmp_path: Path) -> None:
    published = load_upstream(write_clone(tmp_path, "var"))
    other = MultiScaleVQConfig(codebook_size=32, codebook_dim=4, channels=32, multipliers=(1, 2))
    with pytest.raises(FlasharError, match=r"image tokenizers of levels \(1, 1, 2, 2, 4\), this one has \(1, 2\)"):
        published.check_model(config_of(tokenizer=other.model_dump()), GRID)
    with pytest.raises(FlasharError, match="here are 48 and 32"):
        published.check_model(config_of(transformer={**config_of().transformer.model_dump(), "ffn_dim": 48}), GRID)
    wide = {name: var_like_config().model_dump()[name] for name in ("schedules", "grid", "transformer")}
    with pytest.raises(FlasharError, match="square maps"):
        published.check_model(config_of(**wide), Grid(3, 5))
    for changes, words in (
        ({"cfg_scale": 1.0}, "guides every image"),
        ({"cfg_schedule": "constant"}, "guides every image"),
        ({"temperature": 0.5}, "temperature 0.5"),
        ({"min_p": 0.1}, "min_p 0.1"),
    ):
        with pytest.raises(FlasharError, match=words):
            published.check_sampling(SAMPLING.changed(**changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    (
        ({}, {"cfg": 1.5, "top_k": 0, "top_p": 0.0}),
        ({"top_k": 5, "top_p": 0.9}, {"cfg": 1.5, "top_k": 5, "top_p": 0.9}),
        ({"top_p": 0.9, "temperature": 0.0}, {"cfg": 1.5, "top_k": 1, "top_p": 0.0}),
    ),
)
def test_upstream_is_asked_for_the_same(tmp_path: Path, changes: dict, expected: dict) -> None:
    """VAR's guidance of 1.5 adds to 1, and top-p 0 means none."""
    published, benched = load_upstream(write_clone(tmp_path, "var")), subject_of(config_of())
    model, asked = published.model(benched, GRID), {}
    decode = model.autoregressive_infer_cfg
    model.autoregressive_infer_cfg = lambda **given: asked.update(given) or decode(**given)
    batch = replace(Batch.of(PLAN, benched.model, GRID, 2), sampling=SAMPLING.changed(**changes), seed=7)
    assert published.prepare(benched, batch).sample(lambda: None).shape == (2, 14)
    assert {name: asked[name] for name in expected} == expected
    assert (asked["B"], asked["g_seed"]) == (2, 7) and asked["label_B"] is batch.conditions.tensors["labels"]


def test_without_pixels_both_end_with_tokens(tmp_path: Path) -> None:
    published = load_upstream(write_clone(tmp_path, "var"))
    report = run.bench(replace(subject_of(config_of()), wants_pixels=False), PLAN, RATES, upstream=published)
    assert all(arm.token_decode_s is None for batch in report.batches for arm in batch.arms)


def test_a_clone_of_another_layout_is_one_line(tmp_path: Path) -> None:
    clone = write_clone(tmp_path, "var")
    (clone / "models/vqvae.py").write_text("class VQVAE: pass")
    with pytest.raises(FlasharError, match="another layout than a clone of github.com/FoundationVision/VAR"):
        run.bench(subject_of(config_of()), PLAN, RATES, upstream=load_upstream(clone))


@pytest.mark.parametrize("shared", (False, True))
def test_the_real_sampler_draws_what_ours_draws(shared: bool) -> None:
    if "VAR_CLONE" not in os.environ:
        pytest.skip("VAR_CLONE names no clone")
    config = config_of()
    part = config.transformer.model_copy(update={"shared_modulation": shared})
    benched = subject_of(config.model_copy(update={"transformer": part}))
    published = load_upstream(Path(os.environ["VAR_CLONE"]))
    report = published.check(benched, Batch.of(PLAN, benched.model, GRID, 2))
    assert (report.num_tokens, report.num_equal_tokens) == (28, 28)
