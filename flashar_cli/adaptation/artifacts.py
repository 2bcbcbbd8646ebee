"""The files of a run beside the weights: sample sheets, gate map, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli.adaptation import gates, samples
from flashar_cli.adaptation.job import AdaptJob, run_dir
from flashar_cli.adaptation.report import AdaptReport, render
from flashar_cli.adaptation.tensorboard import FOLDER as TENSORBOARD_FOLDER
from flashar_cli.checkpoints import adapters, checkpoint
from flashar_cli.config import RasterConfig
from flashar_cli.data.tokens import TokenSet
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import ANYTHING, HTML, JSON_LINES, PNG, FolderKind
from flashar_cli.files.outputs import Output
from flashar_cli.machine import environment
from flashar_cli.machine.world import current_world
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.reporting.figures import has_matplotlib, to_png
from flashar_cli.training.metrics import read_records

METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
GATE_MAP_FILE = "gate-map.png"

# An unfinished run, with its training state.
RUN = FolderKind(
    "an adaptation's run",
    {
        r"metrics\.jsonl": JSON_LINES,
        r"report\.html": HTML,
        r"gate-map\.png|samples-\w+\.png": PNG,
        rf"{adapters.FOLDER}/.*": ANYTHING,
        r"tensorboard/|tensorboard/events\.out\.tfevents\..+": ANYTHING,
        r"state/|state/(saved|\.unfinished)-\d+-\d+/.*": ANYTHING,
    },
)
SHEET_IMAGES = 40
# Fewer of the base, as raster order is slower and they only serve as a comparison.
BASE_SHEET_IMAGES = 20


def outputs(out: Path) -> list[Output]:
    """The files that an adaptation to ``out`` writes."""
    run = Output("the run's folder", run_dir(out), RUN, goes_on=True)
    return [Output("--out", out, checkpoint.CHECKPOINT), run]


def sheet_path(job: AdaptJob, name: str) -> Path:
    """``samples-NAME.png`` of the run."""
    return job.run_dir / f"samples-{name}.png"


def has_samples(job: AdaptJob, validation: TokenSet, name: str) -> bool:
    """Whether the sheet is there, with all that the report shows: the user may have changed it since it was made."""
    if job.loaded.tokenizer is None:
        return True
    count = len(samples.subjects(job.loaded.config, validation, BASE_SHEET_IMAGES)[1])
    try:
        samples.read_sheet(sheet_path(job, name), job.loaded.config, count)
    except FlasharError:
        return False
    return True


def write_samples(
    job: AdaptJob, model: FlasharModel, validation: TokenSet, name: str, decoder: str, count: int
) -> None:
    """Writes a sheet made with the checkpoint's generation defaults; none where the model has no tokenizer. Processes
    that share a sharded model call this together, and the first one writes.
    """
    tokenizer = job.loaded.tokenizer
    if tokenizer is None:
        return
    conditions, _ = samples.subjects(model.config, validation, count)
    batch_size = min(count, job.recipe.engine.micro_batch_size)
    with torch.compiler.set_stance("force_eager"):  # only the shapes of training are compiled
        images = samples.draw_samples(model, tokenizer, decoder, conditions, batch_size, job.seed)
    if not current_world().is_main:
        return
    settings = {"base": job.base_name, "decoder": decoder, "weights": name, "seed": job.seed}
    samples.write_sheet(sheet_path(job, name), images, settings)


def draw_gates(job: AdaptJob, model: FlasharModel, validation: TokenSet) -> NDArray[np.float64] | None:
    """The mean gate of every cell, [H, W]; None where there is no gate."""
    if model.branch is None:
        return None
    with torch.compiler.set_stance("force_eager"):
        return gates.gate_map(model, validation, job.recipe.engine.micro_batch_size, job.dtype)


def write_report(
    job: AdaptJob,
    config: RasterConfig,
    train: TokenSet,
    validation: TokenSet,
    fingerprint: str,
    last_stage: str,
    gates_HW: NDArray[np.float64] | None,
) -> None:
    """Writes ``report.html`` and ``gate-map.png``, from the adapted model's config and gates and the run's files."""
    if gates_HW is not None and has_matplotlib():
        text = {"flashar": json.dumps({"gate_mean": gates_HW.round(6).tolist()})}
        (job.run_dir / GATE_MAP_FILE).write_bytes(to_png(gates.gate_figure(gates_HW), text))
    images, names = None, []
    if job.loaded.tokenizer is not None:
        names = samples.subjects(config, validation, BASE_SHEET_IMAGES)[1]
        base, adapted = (samples.read_sheet(sheet_path(job, name), config, len(names)) for name in ("base", last_stage))
        images = (base, adapted)
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
        hardware=environment.hardware(job.device),
        software=environment.software(),
        records=read_records(job.run_dir / METRICS_FILE),
        gates_HW=gates_HW,
        probe=job.probe,
        samples=images,
        sample_names=names,
    )
    (job.run_dir / REPORT_FILE).write_text(render(report), encoding="utf-8")


def left_behind(job: AdaptJob) -> dict[str, Path]:
    """Files that go into the checkpoint beside the weights, by their name there: those of the run, and the base's text
    tokenizer.
    """
    found = sorted(path for path in job.run_dir.iterdir() if path.is_file())
    files = {path.name: path for path in found if path.suffix in (".jsonl", ".png", ".html")}
    files |= {name: job.run_dir / name for name in adapters.FILES if (job.run_dir / name).exists()}
    files |= {f"{TENSORBOARD_FOLDER}/{path.name}": path for path in (job.run_dir / TENSORBOARD_FOLDER).glob("*")}
    text = job.loaded.text_tokenizer
    return files if text is None else files | text.copies
