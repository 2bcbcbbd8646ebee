"""What a run leaves beside the weights: sample sheets, gate map, report."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from flashar_cli.adaptation.job import AdaptJob
from flashar_cli.benchmarking import environment
from flashar_cli.data.codes import CodeSet
from flashar_cli.errors import FlasharError
from flashar_cli.kinds import ANYTHING, HTML, JSON_LINES, PNG, FolderKind
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.reporting import gates, samples
from flashar_cli.reporting.figures import has_matplotlib, to_png
from flashar_cli.reporting.report import AdaptReport, render
from flashar_cli.reporting.tensorboard import FOLDER as TENSORBOARD_FOLDER
from flashar_cli.training.metrics import read_records

METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
GATE_MAP_FILE = "gate-map.png"

# A run under way, with its training state.
RUN = FolderKind(
    "an adaptation's run",
    {
        r"metrics\.jsonl": JSON_LINES,
        r"report\.html": HTML,
        r"gate-map\.png|samples-\w+\.png": PNG,
        r"tensorboard/|tensorboard/events\.out\.tfevents\..+": ANYTHING,
        r"state/|state/(saved|\.unfinished)-\d+-\d+/.*": ANYTHING,
    },
)
SHEET_IMAGES = 40
# Of the base, in raster order: slower, and only for comparison.
BASE_SHEET_IMAGES = 20


def sheet_path(job: AdaptJob, name: str) -> Path:
    """``samples-NAME.png`` of the run."""
    return job.run_dir / f"samples-{name}.png"


def has_base_samples(job: AdaptJob, validation: CodeSet) -> bool:
    """Whether a resumed run needs no new samples of its base."""
    names = samples.subjects(job.loaded.config, validation, BASE_SHEET_IMAGES)[1]
    return job.loaded.tokenizer is None or _has_samples(job, "base", len(names))


def _has_samples(job: AdaptJob, name: str, count: int) -> bool:
    """Whether the sheet is there whole: the user may have been at it since it was drawn."""
    try:
        samples.read_sheet(sheet_path(job, name), job.loaded.config, count)
    except FlasharError:
        return False
    return True


def write_samples(job: AdaptJob, model: FlasharModel, validation: CodeSet, name: str, decoder: str, count: int) -> None:
    """A sheet at the checkpoint's generation defaults, where the model has a tokenizer to make pictures with."""
    tokenizer = job.loaded.tokenizer
    if tokenizer is None:
        return
    conditions, _ = samples.subjects(model.config, validation, count)
    batch_size = min(count, job.recipe.engine.micro_batch_size)
    with torch.compiler.set_stance("force_eager"):  # compiled for the shapes of training steps alone
        pictures = samples.draw_samples(model, tokenizer, decoder, conditions, batch_size, job.seed)
    settings = {"base": job.base_name, "decoder": decoder, "weights": name, "seed": job.seed}
    samples.write_sheet(sheet_path(job, name), pictures, settings)


def write_report(
    job: AdaptJob, model: FlasharModel, train: CodeSet, validation: CodeSet, fingerprint: str, last_stage: str
) -> None:
    """``report.html`` and ``gate-map.png``, of the adapted model and what the run has left behind."""
    config = model.config
    with torch.compiler.set_stance("force_eager"):
        gates_HW = gates.gate_map(model, validation, job.recipe.engine.micro_batch_size, job.dtype)
    if has_matplotlib():
        text = {"flashar": json.dumps({"gate_mean": gates_HW.round(6).tolist()})}
        (job.run_dir / GATE_MAP_FILE).write_bytes(to_png(gates.gate_figure(gates_HW), text))
    pictures, names = None, []
    if job.loaded.tokenizer is not None:
        names = samples.subjects(config, validation, BASE_SHEET_IMAGES)[1]
        if not _has_samples(job, last_stage, len(names)):  # drawn before an interruption, and gone since
            write_samples(job, model, validation, last_stage, "flashar", SHEET_IMAGES)
        base, adapted = (samples.read_sheet(sheet_path(job, name), config, len(names)) for name in ("base", last_stage))
        pictures = (base, adapted)
    report = AdaptReport(
        base_name=job.base_name,
        base_sha256=job.base_sha256,
        config=config,
        recipe=job.recipe.model_dump(mode="json"),
        seed=job.seed,
        dtype=str(job.dtype).removeprefix("torch."),
        data_fingerprint=fingerprint,
        num_train=len(train),
        num_validation=len(validation),
        hardware=environment.hardware(model.device),
        software=environment.software(),
        records=read_records(job.run_dir / METRICS_FILE),
        gates_HW=gates_HW,
        probe=job.probe,
        samples=pictures,
        sample_names=names,
    )
    (job.run_dir / REPORT_FILE).write_text(render(report), encoding="utf-8")


def left_behind(job: AdaptJob) -> dict[str, Path]:
    """Files of the run that go into the checkpoint, by their place in it."""
    found = sorted(path for path in job.run_dir.iterdir() if path.is_file())
    files = {path.name: path for path in found if path.suffix in (".jsonl", ".png", ".html")}
    events = (job.run_dir / TENSORBOARD_FOLDER).glob("*")
    return files | {f"{TENSORBOARD_FOLDER}/{path.name}": path for path in events}
