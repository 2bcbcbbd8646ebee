"""The two-stage adaptation of a raster base, from tokens to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli import __version__
from flashar_cli.adaptation import artifacts
from flashar_cli.adaptation.job import AdaptJob
from flashar_cli.adaptation.records import check_run, stamped, start_record
from flashar_cli.adaptation.tensorboard import FOLDER as TENSORBOARD_FOLDER
from flashar_cli.adaptation.tensorboard import MISSING, EventFiles, has_tensorboard
from flashar_cli.checkpoints import checkpoint
from flashar_cli.config import Provenance, Subset
from flashar_cli.data.tokens import TokenSet, ids_sha256, split_validation
from flashar_cli.files.writing import remove_folder
from flashar_cli.training.loop import Report, TrainingRun, run_stages
from flashar_cli.training.metrics import MetricsFile, Record, read_records
from flashar_cli.training.parallel import barrier, process_group, whole_model
from flashar_cli.training.state import TrainingState
from flashar_cli.training.validation import check_base


def adapt(
    job: AdaptJob, data: TokenSet, overwrite: bool, report: Report, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Runs, or resumes, both stages and writes the checkpoint; returns all validations, that of the base first. All
    processes of the run call it; the first one reports, writes and returns the result.

    Raises FlasharError where the base's loss says that base and data don't belong together.
    """
    train, validation = split_validation(data, job.recipe.data.num_validation)
    model, recipe, stages = job.loaded.model, job.recipe, job.recipe.stages
    with process_group(model.device) as world:
        loss = check_base(model, validation, recipe.engine.micro_batch_size, job.dtype)
        note(f"the base's raster loss on this data is {loss:.3f} nats per token")
        model.add_branch(job.branch, job.seed)
        fingerprint, on_cuda = data.fingerprint(), model.device.type == "cuda"
        state = TrainingState(job.run_dir, _identity(job, fingerprint), overwrite, recipe.keep_states, on_cuda)
        barrier()  # no process writes before all have read the state
        begun = state.total_steps(stages)
        if state.loaded is not None:
            note(f"resuming from {state.last}")
        recorder = _Recorder(job, begun, report, note) if world.is_main else None
        if recorder is not None:
            if state.loaded is None or not artifacts.has_base_samples(job, validation):
                note("making sample images of the base, to compare with")
                artifacts.write_samples(job, model, validation, "base", "raster", artifacts.BASE_SHEET_IMAGES)
            # Measures this machine, for which one process is enough.
            start = start_record(model.config, stages, recipe.optim.batch_size, begun, model.device, job.dtype)
            recorder("start", start)

        def draw_samples(stage: str) -> None:
            whole = whole_model(model)
            if whole is not None:
                artifacts.write_samples(job, whole, validation, stage, "flashar", artifacts.SHEET_IMAGES)

        run_stages(
            TrainingRun(
                model=model,
                train=train,
                validation=validation,
                stages=stages,
                optim=recipe.optim,
                engine=recipe.engine,
                seed=job.seed,
                dtype=job.dtype,
                state=state,
                save_every=recipe.save_every,
                validate_every=recipe.validate_every,
                report=recorder or (lambda kind, values: None),
                stage_done=draw_samples,
            )
        )
        adapted = whole_model(model)
        if adapted is not None and recorder is not None:
            recorder.events.close()
            artifacts.write_report(job, adapted, train, validation, fingerprint, stages[-1].name)
            _save(job, adapted.state_dict(), fingerprint, data.ids, overwrite)
            remove_folder(job.run_dir, artifacts.RUN)
        barrier()
        return [] if recorder is None else recorder.metrics.validations


class _Recorder:
    """Sends every record to the metrics file, the event files and ``report``."""

    def __init__(self, job: AdaptJob, resume_at: int, report: Report, note: Callable[[str], None]) -> None:
        self._device = job.loaded.model.device
        self.metrics = MetricsFile(job.run_dir / artifacts.METRICS_FILE, resume_at)
        past = read_records(self.metrics.path)
        if resume_at:
            check_run(past, self.metrics.path)
        self.events = EventFiles(job.run_dir / TENSORBOARD_FOLDER, past)
        self._report = report
        if not has_tensorboard():
            note(MISSING)

    def __call__(self, kind: str, values: Record) -> None:
        values = stamped(values, self._device)
        for receive in (self.metrics, self.events, self._report):
            receive(kind, values)


def _identity(job: AdaptJob, fingerprint: str) -> dict[str, Any]:
    """The settings that a resumed run must share. How a step is computed and how often it saves may change."""
    return {
        "base": job.base_sha256,
        "recipe": job.recipe.model_dump_json(exclude={"engine", "save_every", "keep_states"}),
        "branch": job.branch.model_dump_json(),
        "data": fingerprint,
        "seed": job.seed,
        "dtype": str(job.dtype),
    }


def _save(
    job: AdaptJob, weights: dict[str, torch.Tensor], fingerprint: str, ids: NDArray[np.str_], overwrite: bool
) -> None:
    provenance = Provenance(
        tool_version=__version__,
        source=job.base_name,
        source_sha256=job.base_sha256,
        recipe=job.recipe.model_dump(mode="json") | {"seed": job.seed},
        data_fingerprint=fingerprint,
        subset=Subset(size=len(ids), seed=job.seed, ids_sha256=ids_sha256(ids)),
    )
    config = job.loaded.config.model_copy(update={"provenance": provenance})
    tokenizer = None
    if job.loaded.tokenizer is not None:
        tokenizer = {name: tensor.to(job.stored_dtype) for name, tensor in job.loaded.tokenizer.state_dict().items()}
    state = {name: tensor.to(job.stored_dtype) for name, tensor in weights.items()}
    checkpoint.save(job.out, config, state, tokenizer, overwrite, artifacts.left_behind(job))
