"""Two-stage adaptation of a raster base, from codes to a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashar_cli import __version__, checkpoint
from flashar_cli.benchmarking import environment
from flashar_cli.checkpoint import Loaded
from flashar_cli.config import BranchConfig, Provenance, default_gate_dim
from flashar_cli.data.codes import CodeSet, split_validation
from flashar_cli.errors import FlasharError
from flashar_cli.files import refuse_nonempty
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.preflight import check_base
from flashar_cli.recipe import AdaptRecipe
from flashar_cli.reporting import gates, samples
from flashar_cli.reporting.figures import has_matplotlib, to_png
from flashar_cli.reporting.records import Record, stamped, start_record
from flashar_cli.reporting.report import AdaptReport, render
from flashar_cli.reporting.tensorboard import FOLDER as TENSORBOARD_FOLDER
from flashar_cli.reporting.tensorboard import MISSING, EventFiles, has_tensorboard
from flashar_cli.training.loop import Report, TrainingRun, run_stages
from flashar_cli.training.metrics import MetricsFile, read_records
from flashar_cli.training.optim import ADAM_BYTES_PER_WEIGHT
from flashar_cli.training.stages import Stage
from flashar_cli.training.state import TrainingState

METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
GATE_MAP_FILE = "gate-map.png"
SHEET_IMAGES = 40
# Of the base, in raster order: slower, and only for comparison.
BASE_SHEET_IMAGES = 20


@dataclass(frozen=True)
class AdaptJob:
    """What to adapt, how and where to. ``base_name`` goes into provenance, ``base_sha256`` identifies the base;
    ``probe`` is the content of the ``probe.json`` that the report shows.
    """

    loaded: Loaded
    base_name: str
    base_sha256: str
    recipe: AdaptRecipe
    recommended_layer: int | None
    out: Path
    seed: int
    dtype: torch.dtype
    stored_dtype: torch.dtype
    probe: dict[str, Any] | None = None

    @property
    def branch(self) -> BranchConfig:
        """Where the branch starts: the recipe's layer, else the probe's, else L - depth. Raises FlasharError."""
        wanted, backbone = self.recipe.branch, self.loaded.config.backbone
        layer = next(
            value
            for value in (wanted.layer, self.recommended_layer, max(0, backbone.num_layers - wanted.depth))
            if value is not None
        )
        if layer > backbone.num_layers:
            raise FlasharError(f"--branch-layer is {layer}; expected 0..{backbone.num_layers}")
        gate_dim = default_gate_dim(wanted.gate, backbone.dim, backbone.vocab_size)
        return BranchConfig(layer=layer, depth=wanted.depth, gate=wanted.gate, gate_dim=gate_dim)

    @property
    def run_dir(self) -> Path:
        """Where metrics, samples and training state are while the run lasts."""
        return self.out.with_name(self.out.name + ".run")


def check_job(job: AdaptJob, overwrite: bool) -> None:
    """Everything that can be refused before data is read. Raises FlasharError."""
    if job.loaded.model.branch is not None:
        raise FlasharError(f"{job.base_name} has a vertical branch already; adapt its raster base")
    refuse_nonempty(job.out, overwrite)
    assert job.branch


def describe(job: AdaptJob, num_images: int) -> dict[str, Any]:
    """What a run will do, for ``--dry-run``: shapes, steps, memory."""
    base = sum(parameter.numel() for parameter in job.loaded.model.parameters())
    with torch.device("meta"):
        config = job.loaded.config.model_copy(update={"branch": job.branch})
        total = sum(parameter.numel() for parameter in FlasharModel(config).parameters())
    optim = job.recipe.optim
    return {
        "base": job.base_name,
        "branch": job.branch.model_dump(),
        "branch_parameters": total - base,
        "steps": job.recipe.stage_steps,
        "images_per_step": optim.batch_size,
        "forwards_per_step": -(-optim.batch_size // min(optim.micro_batch_size, optim.batch_size)),
        "num_images": num_images,
        "weights_and_optimizer_bytes": {
            "stage1": 4 * base + ADAM_BYTES_PER_WEIGHT * (total - base),
            "stage2": ADAM_BYTES_PER_WEIGHT * total,
        },
        "recipe": job.recipe.model_dump(mode="json"),
        "out": str(job.out),
    }


def adapt(
    job: AdaptJob, data: CodeSet, overwrite: bool, report: Report, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Runs, or resumes, both stages and writes the checkpoint; returns all validations, the base's first.

    Raises FlasharError where the pre-flight finds that base and data don't belong together.
    """
    train, validation = split_validation(data, job.recipe.data.num_validation)
    model, recipe = job.loaded.model, job.recipe
    loss = check_base(model, validation, recipe.optim.micro_batch_size, job.dtype)
    note(f"the base's raster loss on this data is {loss:.3f} nats per token")
    model.add_branch(job.branch, job.seed)
    fingerprint = data.fingerprint()
    settings = {
        "base": job.base_sha256,
        "recipe": recipe.model_dump_json(),
        "branch": job.branch.model_dump_json(),
        "data": fingerprint,
        "seed": job.seed,
        "dtype": str(job.dtype),
    }
    stages = [Stage(name, steps, getattr(recipe, name)) for name, steps in recipe.stage_steps.items()]
    state = TrainingState(job.run_dir, settings, discard_other=overwrite)
    if state.loaded is not None:
        note(f"resuming from {state.path}")
    metrics = MetricsFile(job.run_dir / METRICS_FILE, state.total_steps(stages))

    events = EventFiles(job.run_dir / TENSORBOARD_FOLDER, read_records(metrics.path))
    if not has_tensorboard():
        note(MISSING)

    def record(kind: str, values: Record) -> None:
        values = stamped(values, model.device)
        for receive in (metrics, events, report):
            receive(kind, values)

    if state.loaded is None or not _sheet(job, "base").exists():
        note("drawing samples of the base, to compare with")
        write_samples(job, model, "base", "raster", BASE_SHEET_IMAGES)
    begun = state.total_steps(stages)
    record("start", start_record(model.config, stages, recipe.optim.batch_size, begun, model.device, job.dtype))
    run_stages(
        TrainingRun(
            model=model,
            train=train,
            validation=validation,
            stages=stages,
            optim=recipe.optim,
            seed=job.seed,
            dtype=job.dtype,
            state=state,
            save_every=recipe.save_every,
            validate_every=recipe.validate_every,
            report=record,
            stage_done=lambda name: write_samples(job, model, name, "flashar", SHEET_IMAGES),
        )
    )
    events.close()
    _write_report(job, model, train, validation, fingerprint, stages[-1].name)
    _save(job, fingerprint, overwrite)
    shutil.rmtree(job.run_dir)
    return metrics.validations


def write_samples(job: AdaptJob, model: FlasharModel, name: str, decoder: str, count: int) -> None:
    """``samples-NAME.png``: a sheet at the checkpoint's generation defaults, where the model can make pictures."""
    tokenizer = job.loaded.tokenizer
    if tokenizer is None or not samples.can_draw(model.config):
        return
    batch_size = min(count, job.recipe.optim.micro_batch_size)
    pictures = samples.draw_samples(model, tokenizer, decoder, count, batch_size, job.seed)
    settings = {"base": job.base_name, "decoder": decoder, "weights": name, "seed": job.seed}
    samples.write_sheet(_sheet(job, name), pictures, settings)


def _sheet(job: AdaptJob, name: str) -> Path:
    return job.run_dir / f"samples-{name}.png"


def _write_report(
    job: AdaptJob, model: FlasharModel, train: CodeSet, validation: CodeSet, fingerprint: str, last_stage: str
) -> None:
    """``report.html`` and ``gate-map.png``, of the adapted model and what the run has left behind."""
    config = model.config
    with torch.compiler.set_stance("force_eager"):  # compiled for the shapes of training steps alone
        gates_HW = gates.gate_map(model, validation, job.recipe.optim.micro_batch_size, job.dtype)
    if has_matplotlib():
        text = {"flashar": json.dumps({"gate_mean": gates_HW.round(6).tolist()})}
        (job.run_dir / GATE_MAP_FILE).write_bytes(to_png(gates.gate_figure(gates_HW), text))
    pictures = None
    if samples.can_draw(config):
        sheets = [samples.read_sheet(_sheet(job, name), config, BASE_SHEET_IMAGES) for name in ("base", last_stage)]
        pictures = (sheets[0], sheets[1])
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
    )
    (job.run_dir / REPORT_FILE).write_text(render(report), encoding="utf-8")


def _save(job: AdaptJob, fingerprint: str, overwrite: bool) -> None:
    provenance = Provenance(
        tool_version=__version__,
        source=job.base_name,
        source_sha256=job.base_sha256,
        recipe=job.recipe.model_dump(mode="json") | {"seed": job.seed},
        data_fingerprint=fingerprint,
    )
    config = job.loaded.config.model_copy(update={"provenance": provenance})
    extras = {path.name: path for path in job.run_dir.iterdir() if path.suffix in (".jsonl", ".png", ".html")}
    extras |= {f"{TENSORBOARD_FOLDER}/{path.name}": path for path in (job.run_dir / TENSORBOARD_FOLDER).glob("*")}
    tokenizer = None
    if job.loaded.tokenizer is not None:
        tokenizer = {name: tensor.to(job.stored_dtype) for name, tensor in job.loaded.tokenizer.state_dict().items()}
    state = {name: tensor.to(job.stored_dtype) for name, tensor in job.loaded.model.state_dict().items()}
    checkpoint.save(job.out, config, state, tokenizer, overwrite, extras)
