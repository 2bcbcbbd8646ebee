"""Documents of our own that somebody edited: each is read as it is or refused in a line, whatever was done to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from flashar_cli.adaptation.records import check_run, training_s
from flashar_cli.benchmarking.reports.compare import compare, hardware_changes, version_changes
from flashar_cli.benchmarking.reports.document import BenchReport, read_report
from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import read_config
from flashar_cli.config.recipe import DataSettings, Stage, StageSettings
from flashar_cli.data.conditions import Given
from flashar_cli.data.conditions.text import TextConditions
from flashar_cli.data.encode_job import EncodeJob
from flashar_cli.data.encode_shard import WORK
from flashar_cli.data.encoding import PLAN, count_missing, encode
from flashar_cli.data.options import EncodeOptions
from flashar_cli.data.prepare import plan_encoding
from flashar_cli.data.shards import read_shards
from flashar_cli.data.sources.base import Wanted
from flashar_cli.data.sources.open import open_images
from flashar_cli.errors import FlasharError
from flashar_cli.files.shards import INDEX_FILE
from flashar_cli.generation.layout import GenEval
from flashar_cli.grid import Grid
from flashar_cli.machine.world import World
from flashar_cli.probing.report import read_recommendation
from flashar_cli.reporting import curves
from flashar_cli.tokenizers.vq import VQTokenizer
from flashar_cli.training.metrics import MetricsFile, read_records
from flashar_cli.training.state import TrainingState
from tests.adaptation.runs import adapt_report, run_records
from tests.benchmarking.reports.made_up import report
from tests.data.images import shape_folder
from tests.input.files import accepted, as_json, damaged, mutated, quick, thorough
from tests.tiny_models import PROMPT_PREFIX, build_model, random_config

SETTINGS = {"base": "abc", "seed": 3}
STAGES = [Stage("one", 4, StageSettings()), Stage("two", 4, StageSettings())]


@dataclass(frozen=True)
class Document:
    """A good one, where it belongs, and what reads it."""

    content: Any
    path: Path
    read: Callable[[], object]

    def text(self, content: Any) -> str:
        lines = content if self.path.suffix == ".jsonl" and isinstance(content, list) else [content]
        return "".join(as_json(line) + "\n" for line in lines)


def manifest(folder: Path) -> Document:
    job = encoded(folder, finished=True)
    path = folder / "codes" / "manifest.json"
    sha256 = job.settings.tokenizer_sha256

    def read() -> None:
        count_missing(job, path.parent)
        read_shards(path.parent, job.encoder.grid, 32, sha256, job.conditions)

    return Document(json.loads(path.read_text()), path, read)


def old_manifest(folder: Path) -> Document:
    job = encoded(folder, finished=True)
    path = folder / "codes" / "manifest.json"
    full = json.loads(path.read_text())
    old = {
        "grid": full["grid"],
        "tokenizer_sha256": None,
        "num_images": 12,
        "files": [s["name"] for s in full["shards"]],
    }
    return Document(old, path, lambda: read_shards(path.parent, job.encoder.grid, 32, None, job.conditions))


def shard_record(folder: Path) -> Document:
    job = encoded(folder, finished=False)
    path = folder / "codes" / WORK / "00000.json"
    return Document(json.loads(path.read_text()), path, lambda: count_missing(job, folder / "codes"))


def plan(folder: Path) -> Document:
    job = encoded(folder, finished=False)
    path = folder / "codes" / WORK / PLAN
    return Document(json.loads(path.read_text()), path, lambda: count_missing(job, folder / "codes"))


def encoded(folder: Path, finished: bool) -> EncodeJob:
    config = random_config(branch=False)
    assert config.tokenizer is not None
    loaded = checkpoint.Loaded(build_model(config), VQTokenizer(config.tokenizer).eval())
    options = EncodeOptions(DataSettings(max_bad="1"), batch_size=4, shard_size=6)
    data = shape_folder(folder / "images", 12)
    (data / "star" / "bad.png").write_bytes(b"no image")
    job = plan_encoding(loaded, str(data), None, 0, options)
    encode(job, folder / "codes", World() if finished else World(0, 2))
    return job


def bench_report(folder: Path) -> Document:
    other = BenchReport.model_validate(report())

    def read() -> None:
        found = read_report(folder / "report.json")
        for old, new in ((other, found), (found, other), (found, found)):
            assert all(isinstance(line, str) for line in hardware_changes(old, new) + version_changes(old, new))
            accepted(lambda old=old, new=new: compare(old, new, 0.05, True))

    content = BenchReport.model_validate(report(batch_sizes=(1, 8))).model_dump(mode="json")
    return Document(content, folder / "report.json", read)


def old_bench_report(folder: Path) -> Document:
    return Document(report(), folder / "report.json", lambda: read_report(folder / "report.json"))


def probe(folder: Path) -> Document:
    rows = [{"layer": m, "right_loss": 3.0, "lower_loss": 4.0 - m, "lower_top1": 0.1} for m in range(3)]
    content = {"model": "tiny", "model_sha256": "ab", "recommended_layer": 1, "branch_depth": 1, "mask": "raster"}
    content |= {
        "head": "full",
        "num_train": 40,
        "num_validation": 8,
        "seed": 0,
        "data_fingerprint": "x",
        "layers": rows,
    }
    path = folder / "probe.json"
    return Document(content, path, lambda: read_recommendation(path, random_config(), "ab", 1))


def metrics(folder: Path) -> Document:
    path = folder / "metrics.jsonl"

    def read() -> None:
        MetricsFile(path, resume_at=8)
        records = read_records(path)
        check_run(records, path)
        assert np.isfinite(training_s(records))
        curves.stage_starts(records), curves.resumptions(records), curves.series(records, "step", "fused")
        assert adapt_report(records=records).validations[0]["raster"] is not None

    return Document(run_records(resumed_at=6), path, read)


def progress(folder: Path) -> Document:
    path = folder / "state" / "saved-01-00000003" / "progress.json"
    path.parent.mkdir(parents=True)
    content = {"settings": SETTINGS, "stage": 1, "step": 3, "has_optimizer": True}
    return Document(content, path, lambda: TrainingState(folder, SETTINGS).total_steps(STAGES))


def index(folder: Path) -> Document:
    config = random_config(tokenizer=False)
    state = build_model(config).state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "MAX_SHARD_SIZE", "60KB")
        checkpoint.save(folder / "model", config, state, None)
    path = folder / "model" / INDEX_FILE
    content = json.loads(path.read_text())
    assert len(set(content["weight_map"].values())) > 2
    # With fewer names the mutations hit what matters more often; the names are all read.
    return Document(content, path, lambda: checkpoint.load(folder / "model", torch.device("cpu")))


def config_file(folder: Path) -> Document:
    content = random_config().model_dump(mode="json")
    return Document(content, folder / "config.json", lambda: read_config(folder))


def image_list(folder: Path) -> Document:
    shape_folder(folder / "images", 3)
    lines = [
        {"image": f"images/{path.parent.name}/{path.name}", "label": k, "id": f"p{k}"}
        for k, path in enumerate(sorted((folder / "images").rglob("*.png")))
    ]
    path = folder / "list.jsonl"

    def read() -> None:
        source = open_images(str(path), Wanted(10))
        for fetch in source.images(np.arange(len(source.ids))):
            accepted(fetch)

    return Document(lines, path, read)


def prompts(folder: Path) -> Document:
    path = folder / "prompts.jsonl"
    content = [{"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": f"{k} stars"} for k in (1, 2)]
    return Document(content, path, lambda: GenEval.read(path, 4).documents())


def prompt_tokens(folder: Path) -> Document:
    path, kind = folder / "tokens.json", TextConditions(PROMPT_PREFIX, Grid(3, 5))
    content = {"cond": [[1, 2, 3], [4]], "uncond": [[5, 6]]}
    return Document(content, path, lambda: kind.parse(Given(prompt_tokens=path), torch.device("cpu"))[0])


DOCUMENTS = {
    "manifest": manifest,
    "manifest without a version": old_manifest,
    "record of a shard": shard_record,
    "plan of an encoding": plan,
    "bench report": bench_report,
    "bench report of layout 1": old_bench_report,
    "probe": probe,
    "metrics": metrics,
    "progress": progress,
    "index": index,
    "config": config_file,
    "list of images": image_list,
    "prompts": prompts,
    "prompt tokens": prompt_tokens,
}


@pytest.fixture(scope="module", params=DOCUMENTS)
def document(request, tmp_path_factory) -> Document:
    return DOCUMENTS[request.param](tmp_path_factory.mktemp("document"))


def check_edited(document, drawn):
    content = drawn.draw(mutated(document.content))
    document.path.write_text(document.text(content), encoding="utf-8", errors="surrogatepass")
    accepted(document.read)


def check_damaged(document, drawn):
    document.path.write_bytes(drawn.draw(damaged(document.text(document.content).encode())))
    accepted(document.read)


test_edited = quick(st.data(), 20)(check_edited)
test_damaged = quick(st.data(), 8)(check_damaged)
test_edited_thoroughly = thorough(st.data(), 2000)(check_edited)
test_damaged_thoroughly = thorough(st.data(), 500)(check_damaged)


def test_good_documents_are_accepted(document):
    document.path.write_text(document.text(document.content))
    assert accepted(document.read)


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    (
        ("manifest", ("counts", "views"), -1, "counts.views"),
        ("manifest", ("shards", 0, "sha256"), None, "shards.0.sha256"),
        ("manifest", ("shards", 0, "name"), "../codes-00000.parquet", "shards.0.name"),
        ("manifest", ("grid",), [4], "grid"),
        ("manifest", ("bad",), [], "bad"),
        ("manifest without a version", ("files",), [7], "files.0"),
        ("bench report", ("batches", 0, "arms", 0, "floor_s"), -1.0, "batches.0.arms.0.floor_s"),
        ("bench report", ("batches", 0, "arms", 0, "token_generation_s", "median_s"), "nan", "median_s"),
        ("bench report", ("batches", 0, "speedups", 0, "over"), "none", "speedups name none"),
        ("bench report", ("batches", 1, "batch_size"), 1, "two batches"),
        ("probe", ("layers", 1, "lower_loss"), "inf", "layers.1.lower_loss"),
        ("probe", ("recommended_layer",), 9, "recommended_layer 9"),
        ("metrics", (2, "step"), -1, "line 3"),
        ("metrics", (0, "batch_size"), 0, "batch_size"),
        ("metrics", (1, "raster"), "low", "raster"),
        ("metrics", (2, "stage"), "third", "third|other stages"),
        ("progress", ("step",), 2.5, "step"),
        ("progress", ("stage",), 0, "stage 0"),
        ("index", ("weight_map", "backbone.norm.weight"), "../model.safetensors", "weight_map.backbone.norm.weight"),
        ("index", ("weight_map", "backbone.norm.weight"), "absent.safetensors", "absent.safetensors is missing"),
        ("list of images", (1, "image"), 7, "line 2"),
        ("list of images", (1, "label"), 1.5, "whole numbers"),
        ("list of images", (1, "id"), "p0", "two images 'p0'"),
    ),
)
def test_file_and_field_are_named(tmp_path, name, place, value, words):
    document = DOCUMENTS[name](tmp_path)
    *parents, last = place
    inner = document.content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    document.path.write_text(document.text(document.content))
    with pytest.raises(FlasharError, match=words) as raised:
        document.read()
    assert document.path.name in str(raised.value) or "is missing" in words


def test_tensors_in_other_shards_than_the_index_says(tmp_path):
    document = index(tmp_path)
    names: dict[str, str] = document.content["weight_map"]
    first, last = (next(name for name in names if names[name] == file) for file in sorted({*names.values()})[:2])
    swapped = names | {first: names[last]}
    unlisted = {name: file for name, file in names.items() if name != first}
    for wrong, words in (
        (swapped, f"{names[first]} holds {first}, which the index has in {names[last]}"),
        (unlisted, f"{names[first]} holds {first}, which the index has in None"),
        (names | {"nothing": names[first]}, f"{names[first]} lacks nothing"),
    ):
        document.path.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(FlasharError, match="does not match its files: .*" + words):
            document.read()


def test_only_the_last_line_of_metrics_may_be_torn(tmp_path):
    document = metrics(tmp_path)
    lines = document.text(document.content).splitlines(keepends=True)
    document.path.write_text("".join([*lines, '{"kind": "st']))
    assert len(read_records(document.path)) == len(lines)
    document.path.write_text("".join([*lines[:3], '{"kind": "st\n', *lines[3:]]))
    with pytest.raises(FlasharError, match="line 4 of .* is not valid JSON"):
        document.read()


def test_work_records_that_are_wrong_are_work_to_do(tmp_path):
    document = shard_record(tmp_path)
    before = document.read()
    document.path.write_text(json.dumps(document.content | {"rows": -1}))
    assert document.read() == before + 6
