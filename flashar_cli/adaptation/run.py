"""The two-stage adaptation of a raster base, from tokens to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli import __version__
from flashar_cli.adaptation import artifacts
from flashar_cli.adaptation.job import AdaptJob
from flashar_cli.adaptation.model import prepare_model
from flashar_cli.adaptation.records import check_run, stamped, start_record
from flashar_cli.adaptation.tensorboard import FOLDER as TENSORBOARD_FOLDER
from flashar_cli.adaptation.tensorboard import MISSING, EventFiles, has_tensorboard
from flashar_cli.checkpoints import adapters, checkpoint
from flashar_cli.checkpoints.sharded import weights_of
from flashar_cli.config import Provenance, Subset
from flashar_cli.data.tokens import TokenSet, ids_sha256, split_validation
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.files.writing import remove_folder
from flashar_cli.machine.processes import barrier, from_first, process_group
from flashar_cli.machine.world import current_world
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.loop import Report, TrainingRun, run_stages
from flashar_cli.training.metrics import MetricsFile, Record, read_records
from flashar_cli.training.parallel import callable_parts
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
    recipe, stages = job.recipe, job.recipe.stages
    decoder = choose_decoder(job.config).name
    with process_group(job.device) as world:
        model = prepare_model(job)
        draws = world.is_main or job.sharded  # all parts of a sharded model are needed to decode
        loss = check_base(model, validation, recipe.engine.micro_batch_size, job.dtype)
        note(f"the base's raster loss on this data is {loss:.3f} nats per token")
        fingerprint, on_cuda = data.fingerprint(), job.device.type == "cuda"
        state = TrainingState(job.run_dir, _identity(job, fingerprint), overwrite, recipe.keep_states, on_cuda)
        barrier()  # no process writes before all have read the state
        begun = state.total_steps(stages)
        if state.loaded is not None:
            note(f"resuming from {state.last}")
        recorder = _Recorder(job, begun, report, note) if world.is_main else None

        def draw_samples(name: str, decoder: str, count: int) -> None:
            if draws:
                with callable_parts(model):
                    artifacts.write_samples(job, model, validation, name, decoder, count)

        has_base = state.loaded is not None and artifacts.has_samples(job, validation, "base")
        if not from_first(has_base):
            note("making sample images of the base, to compare with")
            draw_samples("base", "raster", artifacts.BASE_SHEET_IMAGES)
        if recorder is not None:
            # Measures this machine, for which one process is enough.
            batch_size = recipe.optim.batch_size
            recorder(
                "start",
                start_record(model.config, stages, batch_size, begun, job.device, job.dtype, recipe.lora),
            )
        run_stages(
            TrainingRun(
                model=model,
                train=train,
                validation=validation,
                stages=stages,
                optim=recipe.optim,
                engine=recipe.engine,
                lora=recipe.lora,
                seed=job.seed,
                dtype=job.dtype,
                state=state,
                save_every=recipe.save_every,
                validate_every=recipe.validate_every,
                report=recorder or (lambda kind, values: None),
                stage_done=lambda name: draw_samples(name, decoder, artifacts.SHEET_IMAGES),
            )
        )
        last = stages[-1].name
        if not from_first(
            artifacts.has_samples(job, validation, last)
        ):  # made before an interruption, and removed since
            draw_samples(last, decoder, artifacts.SHEET_IMAGES)
        if draws:
            with callable_parts(model):
                gates_HW = artifacts.draw_gates(job, model, validation)
            if recorder is not None:
                recorder.events.close()
                artifacts.write_report(job, model.config, train, validation, fingerprint, last, gates_HW)
            _save(job, model, fingerprint, data.ids, overwrite)
            if recorder is not None:
                remove_folder(job.run_dir, artifacts.RUN)
        barrier()
        return [] if recorder is None else recorder.metrics.validations


class _Recorder:
    """Sends every record to the metrics file, the event files and ``report``."""

    def __init__(self, job: AdaptJob, resume_at: int, report: Report, note: Callable[[str], None]) -> None:
        self._device = job.device
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
        "config": job.config.model_dump_json(include={"branch", "diffusion"}),
        "data": fingerprint,
        "seed": job.seed,
        "dtype": str(job.dtype),
    }


def _save(job: AdaptJob, model: FlasharModel, fingerprint: str, ids: NDArray[np.str_], overwrite: bool) -> None:
    """Writes the checkpoint. Processes that share a sharded model call this together, and the first one writes."""
    lora, weights = job.recipe.lora, weights_of(model, job.stored_dtype, merge=not job.recipe.lora.apart)
    folder = job.run_dir if current_world().is_main else None
    if lora.apart:
        adapters.write(lora, job.base_name, model, folder)
    if folder is None:
        checkpoint.take_part(weights)
        return
    provenance = Provenance(
        tool_version=__version__,
        source=job.base_name,
        source_sha256=job.base_sha256,
        recipe=job.recipe.model_dump(mode="json") | {"seed": job.seed},
        data_fingerprint=fingerprint,
        subset=Subset(size=len(ids), seed=job.seed, ids_sha256=ids_sha256(ids)),
    )
    config = model.config.model_copy(update={"provenance": provenance, "adapter": lora.apart})
    tokenizer = None
    if job.loaded.tokenizer is not None:
        tokenizer = {name: tensor.to(job.stored_dtype) for name, tensor in job.loaded.tokenizer.state_dict().items()}
    checkpoint.save(job.out, config, weights, tokenizer, overwrite, artifacts.left_behind(job))
