"""Two-stage adaptation of a raster base, from codes to a checkpoint."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flashar_cli import __version__, checkpoint
from flashar_cli.checkpoint import Loaded
from flashar_cli.config import (
    BackboneConfig,
    BranchConfig,
    ClassPrefix,
    ModelConfig,
    Provenance,
    Subset,
    default_gate_dim,
)
from flashar_cli.data.codes import CodeSet, ids_sha256, split_validation
from flashar_cli.data.pictures import contact_sheet, write_png
from flashar_cli.decoding.generate import generate_tokens
from flashar_cli.errors import FlasharError
from flashar_cli.files import refuse_nonempty
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams
from flashar_cli.preflight import check_base
from flashar_cli.recipe import AdaptRecipe, BranchSettings
from flashar_cli.tokenizers.pixels import to_uint8
from flashar_cli.training.loop import Report, TrainingRun, run_stages
from flashar_cli.training.memory import estimate_memory
from flashar_cli.training.metrics import MetricsFile
from flashar_cli.training.parallel import barrier, process_group, whole_model, whole_state
from flashar_cli.training.stages import Stage
from flashar_cli.training.state import TrainingState
from flashar_cli.world import World

METRICS_FILE = "metrics.jsonl"
SHEET_IMAGES = 40


@dataclass(frozen=True)
class AdaptJob:
    """What to adapt, how and where to. ``base_name`` goes into provenance, ``base_sha256`` identifies the base."""

    loaded: Loaded
    base_name: str
    base_sha256: str
    recipe: AdaptRecipe
    recommended_layer: int | None
    out: Path
    seed: int
    dtype: torch.dtype
    stored_dtype: torch.dtype

    @property
    def branch(self) -> BranchConfig:
        """The branch to add. Raises FlasharError."""
        return choose_branch(self.recipe.branch, self.recommended_layer, self.loaded.config.backbone)

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


def choose_branch(wanted: BranchSettings, recommended: int | None, backbone: BackboneConfig) -> BranchConfig:
    """Where the branch starts: the recipe's layer, else the probe's, else L - depth. Raises FlasharError."""
    layer = next(
        value for value in (wanted.layer, recommended, max(0, backbone.num_layers - wanted.depth)) if value is not None
    )
    if layer > backbone.num_layers:
        raise FlasharError(f"--branch-layer is {layer}; expected 0..{backbone.num_layers}")
    gate_dim = default_gate_dim(wanted.gate, backbone.dim, backbone.vocab_size)
    return BranchConfig(layer=layer, depth=wanted.depth, gate=wanted.gate, gate_dim=gate_dim)


def describe(
    base: ModelConfig,
    branch: BranchConfig,
    recipe: AdaptRecipe,
    num_processes: int,
    device_bytes: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What a run will do on devices of this size, for ``--dry-run``: shapes, steps, memory."""
    config = base.model_copy(update={"branch": branch})
    with torch.device("meta"):
        before, after = (sum(p.numel() for p in FlasharModel(each).parameters()) for each in (base, config))
    optim, engine = recipe.optim, recipe.engine
    share = math.ceil(optim.batch_size / num_processes)
    memory = estimate_memory(config, engine, optim.batch_size, num_processes, device_bytes, dtype)
    return {
        "branch": branch.model_dump(),
        "parameters": {"base": before, "branch": after - before},
        "steps": recipe.stage_steps,
        "images_per_step": optim.batch_size,
        "processes": num_processes,
        "dtype": str(dtype).removeprefix("torch."),
        "forwards_per_step": math.ceil(share / min(engine.micro_batch_size, share)),
        "memory_per_device": memory.document(),
        "device_bytes": device_bytes,
        "largest_micro_batch_size": memory.largest_micro_batch(device_bytes),
        "fits": memory.total_bytes <= device_bytes,
        "recipe": recipe.model_dump(mode="json"),
    }


def adapt(
    job: AdaptJob, data: CodeSet, overwrite: bool, report: Report, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Runs, or resumes, both stages and writes the checkpoint; returns all validations, the base's first. All
    processes of the run call it.

    Raises FlasharError where the pre-flight finds that base and data don't belong together.
    """
    with process_group(job.loaded.model.device) as world:
        return _adapt(job, data, overwrite, report, note, world)


def _adapt(
    job: AdaptJob, data: CodeSet, overwrite: bool, report: Report, note: Callable[[str], None], world: World
) -> list[dict[str, Any]]:
    train, validation = split_validation(data, job.recipe.data.num_validation)
    model, recipe = job.loaded.model, job.recipe
    loss = check_base(model, validation, recipe.engine.micro_batch_size, job.dtype)
    note(f"the base's raster loss on this data is {loss:.3f} nats per token")
    model.add_branch(job.branch, job.seed)
    fingerprint = data.fingerprint()
    settings = {
        "base": job.base_sha256,
        # The engine and how often to save may change when a run is resumed.
        "recipe": recipe.model_dump_json(exclude={"engine", "save_every", "keep_states"}),
        "branch": job.branch.model_dump_json(),
        "data": fingerprint,
        "seed": job.seed,
        "dtype": str(job.dtype),
    }
    stages = [Stage(name, steps, getattr(recipe, name)) for name, steps in recipe.stage_steps.items()]
    state = TrainingState(
        job.run_dir, settings, overwrite, recipe.keep_states, asynchronous=model.device.type == "cuda"
    )
    barrier()  # nobody writes before everybody has read what there is
    if state.loaded is not None:
        note(f"resuming from {state.last}")
    metrics = MetricsFile(job.run_dir / METRICS_FILE, state.total_steps(stages)) if world.is_main else None

    def record(kind: str, values: dict[str, Any]) -> None:
        if metrics is not None:
            metrics(kind, values)
            report(kind, values)

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
            report=record,
            stage_done=lambda name: write_samples(job, job.run_dir / f"samples-{name}.png", validation),
        )
    )
    weights = whole_state(model)
    if weights is not None:
        _save(job, weights, fingerprint, data.ids, overwrite)
        shutil.rmtree(job.run_dir)
    barrier()
    return metrics.validations if metrics is not None else []


def write_samples(job: AdaptJob, path: Path, validation: CodeSet) -> None:
    """A contact sheet of FlashAR samples at the checkpoint's generation defaults: classes in turn, or the captions of
    the validation pictures. All processes call it, the first one writes.
    """
    loaded = job.loaded
    prefix = loaded.config.prefix
    if loaded.tokenizer is None:
        return
    model = whole_model(loaded.model)
    if model is None:
        return
    model.eval()
    if isinstance(prefix, ClassPrefix):
        conditions = Conditions(labels=torch.arange(min(prefix.num_classes, SHEET_IMAGES)))
    else:
        conditions = validation.take(slice(0, SHEET_IMAGES)).tensors(torch.device("cpu"))[1]
    params = SamplingParams(**loaded.config.generation.model_dump())
    order = loaded.config.order_grid.diagonal()
    batch_size = min(SHEET_IMAGES, job.recipe.engine.micro_batch_size)
    sheets: list[NDArray[np.uint8]] = []
    with torch.inference_mode():
        for codes in generate_tokens(model, conditions, SHEET_IMAGES, order, params, job.seed, batch_size):
            sheets.extend(to_uint8(loaded.tokenizer.decode(codes)))
    write_png(path, contact_sheet(np.stack(sheets), columns=10), {"base": job.base_name, "decoder": "flashar"})


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
    extras = {path.name: path for path in job.run_dir.iterdir() if path.suffix in (".jsonl", ".png")}
    tokenizer = None
    if job.loaded.tokenizer is not None:
        tokenizer = {name: tensor.to(job.stored_dtype) for name, tensor in job.loaded.tokenizer.state_dict().items()}
    state = {name: tensor.to(job.stored_dtype) for name, tensor in weights.items()}
    checkpoint.save(job.out, config, state, tokenizer, overwrite, extras)
