"""The published sampler as an arm: from a made-up clone that behaves badly, and from a real one where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.upstream import MODEL_FILE, SAMPLER_FILE, check_family, load_upstream
from flashar_cli.config import CaptionPrefix
from flashar_cli.errors import FlasharError
from flashar_cli.nn.sampling import SamplingParams
from tests.benchmarking.test_run import RATES, subject
from tests.tiny_models import random_config

ARMS = ("upstream", "raster-eager", "flashar-eager")
MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from utils.drop_path import MARK

print("an import that talks")
nn.Linear.reset_parameters = lambda self: None
torch.set_float32_matmul_precision("medium")
torch.set_num_threads(1)
torch.manual_seed(99)

@dataclass
class ModelArgs:
    dim: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_kv_head: int = 1
    multiple_of: int = 1
    ffn_dim_multiplier: float = 1.0
    norm_eps: float = 1e-5
    rope_base: float = 1.0
    num_classes: int = 1
    model_type: str = "c2i"
    vocab_size: int = 8
    cls_token_num: int = 1
    block_size: int = 1

class Part(nn.Module):
    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            part = nn.Module()
            part.weight = nn.Parameter(torch.zeros(shape))
            setattr(self, name, part)

class Transformer(nn.Module):
    def __init__(self, args):
        super().__init__()
        dim, hidden = args.dim, int(args.ffn_dim_multiplier * int(8 * args.dim / 3))
        hidden += -hidden % args.multiple_of
        self.vocab_size = args.vocab_size
        self.cls_embedding = Part(embedding_table=(args.num_classes + 1, dim))
        self.tok_embeddings = nn.Embedding(args.vocab_size, dim)
        self.layers = nn.ModuleList(self.block(dim, hidden) for _ in range(args.n_layer))
        self.norm = Part(norm=(dim,)).norm
        self.output = nn.Linear(dim, args.vocab_size, bias=False)

    def block(self, dim, hidden):
        block = Part(attention_norm=(dim,), ffn_norm=(dim,))
        block.attention = Part(wqkv=(3 * dim, dim), wo=(dim, dim))
        block.feed_forward = Part(w1=(hidden, dim), w2=(dim, hidden), w3=(hidden, dim))
        return block

    def forward(self, codes):
        return self.output(self.tok_embeddings(codes)), None
"""
SAMPLER = """
import torch

def generate(model, cond, max_new_tokens, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True):
    codes = [torch.zeros(len(cond), 1, dtype=torch.long)]
    for _ in range(max_new_tokens):
        codes.append(model(codes[-1])[0].argmax(-1))
    return torch.cat(codes[1:], dim=1).int()
"""


def write_clone(directory: Path, model: str = MODEL) -> Path:
    for name, text in ((MODEL_FILE, model), (SAMPLER_FILE, SAMPLER), ("utils/drop_path.py", "MARK = 1")):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def test_import_leaves_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method, path, names = torch.nn.Linear.reset_parameters, list(sys.path), set(sys.modules)
    threads, noise = torch.get_num_threads(), torch.get_rng_state()
    load_upstream(write_clone(tmp_path))
    assert torch.nn.Linear.reset_parameters is method
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), noise)
    assert sys.path == path
    assert not {name for name in set(sys.modules) - names if name.startswith(("autoregressive", "utils"))}
    captured = capsys.readouterr()
    assert captured.out == "" and "talks" in captured.err


def test_upstream_takes_its_turn_on_the_very_weights(tmp_path: Path) -> None:
    published, benched = load_upstream(write_clone(tmp_path)), subject(4, 4)
    plan = run.Plan((1, 2), 1, 1, SamplingParams(cfg_scale=1.5), 0, ARMS)
    report = run.bench(benched, plan, RATES, upstream=published)
    assert report.settings.arms == ARMS
    assert report.upstream is not None and report.upstream.num_tokens == 16
    assert set(report.upstream.files_sha256) == {MODEL_FILE, SAMPLER_FILE}
    for batch in report.batches:
        by_name = {arm.name: arm for arm in batch.arms}
        assert by_name["upstream"].forwards_per_image == 16
        assert by_name["upstream"].floor_s == by_name["raster-eager"].floor_s
        pairs = {(ratio.arm, ratio.over) for ratio in batch.speedups}
        assert pairs == {
            ("flashar-eager", "raster-eager"),
            ("flashar-eager", "upstream"),
            ("raster-eager", "upstream"),
        }
        assert batch.speedup == pytest.approx(
            by_name["raster-eager"].token_generation_s.median_s / by_name["flashar-eager"].token_generation_s.median_s
        )
    built = published._model(benched.model)
    weight = built.get_parameter("output.weight")
    assert weight.data_ptr() == benched.model.backbone.head.weight.data_ptr()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("import a_package_that_is_not_there", "needs the package a_package_that_is_not_there"),
        ("raise RuntimeError('too\\nold')", "RuntimeError: too old"),
        ("x = 1", "has no ModelArgs"),
    ],
)
def test_a_clone_that_does_not_import_is_one_line(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(FlasharError, match=message):
        load_upstream(write_clone(tmp_path, model))


def test_a_clone_of_another_layout_is_one_line(tmp_path: Path) -> None:
    published = load_upstream(write_clone(tmp_path, MODEL.replace("self.norm =", "self.other_norm =")))
    plan = run.Plan((1,), 1, 1, SamplingParams(), 0, ARMS)
    with pytest.raises(FlasharError, match="another layout") as caught:
        run.bench(subject(4, 4), plan, RATES, upstream=published)
    assert "\n" not in str(caught.value)


def test_no_clone_at_all(tmp_path: Path) -> None:
    with pytest.raises(FlasharError, match="has no autoregressive"):
        load_upstream(tmp_path)


def test_what_upstream_can_not_run(tmp_path: Path) -> None:
    with pytest.raises(FlasharError, match="family nar"):
        check_family(random_config().model_copy(update={"family": "nar"}))
    with pytest.raises(FlasharError, match="square"):
        check_family(random_config(3, 5))
    published, plan = load_upstream(write_clone(tmp_path)), run.Plan((1,), 1, 1, SamplingParams(cfg_scale=0.5), 0, ARMS)
    with pytest.raises(FlasharError, match="--cfg-scale"):
        run.bench(subject(4, 4), plan, RATES, upstream=published)


@pytest.mark.skipif("LLAMAGEN_CLONE" not in os.environ, reason="LLAMAGEN_CLONE names no clone of LlamaGen")
@pytest.mark.parametrize("captions", [False, True])
def test_the_real_sampler_draws_what_raster_draws(captions: bool) -> None:
    from flashar_cli.benchmarking.subject import BenchModel
    from tests.tiny_models import build_model

    config = random_config(4, 4)
    if captions:
        config = config.model_copy(update={"prefix": CaptionPrefix(feature_dim=6, length=120)})
    benched = BenchModel("tiny", build_model(config), None, "random weights", False)
    published = load_upstream(Path(os.environ["LLAMAGEN_CLONE"]))
    report = published.check(benched, run.example_conditions(config, 2, 0), 1.5)
    assert (report.num_tokens, report.num_equal_tokens) == (32, 32)
