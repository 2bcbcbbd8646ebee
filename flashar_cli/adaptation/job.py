"""What to adapt, how, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashar_cli.checkpoint import Loaded
from flashar_cli.config import BackboneConfig, BranchConfig, default_gate_dim
from flashar_cli.errors import FlasharError
from flashar_cli.machine import free_bytes, require_memory
from flashar_cli.models.sizes import model_weights
from flashar_cli.recipe import AdaptRecipe, BranchSettings
from flashar_cli.training.memory import WEIGHT_BYTES, estimate_memory
from flashar_cli.world import current_world


@dataclass(frozen=True)
class AdaptJob:
    """``base_name`` goes into provenance, ``base_sha256`` identifies the base; ``probe`` is the content of the
    ``probe.json`` that the report shows.
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
        """The branch to add. Raises FlasharError."""
        return choose_branch(self.recipe.branch, self.recommended_layer, self.loaded.config.backbone)

    @property
    def run_dir(self) -> Path:
        """Where metrics, samples and training state are while the run lasts."""
        return run_dir(self.out)


def run_dir(out: Path) -> Path:
    """The run's folder beside the checkpoint that it will write."""
    return out.parent / f"{out.name}.run"


def check_job(job: AdaptJob) -> None:
    """Everything that can be refused before data is read. Raises FlasharError."""
    if job.loaded.model.branch is not None:
        raise FlasharError(f"{job.base_name} has a vertical branch already; adapt its raster base")
    _refuse_too_large(job)


def _refuse_too_large(job: AdaptJob) -> None:
    """On a GPU running out of memory is an error like others; on a CPU the system ends the process."""
    base, device = job.loaded.config, job.loaded.model.device
    config = base.model_copy(update={"branch": job.branch})
    if device.type != "cpu":
        return
    need = estimate_memory(
        config, job.recipe.engine, job.recipe.optim.batch_size, current_world().size, free_bytes(), job.dtype
    )
    asked = f"training {need.images_per_forward} pictures at a time (engine.micro_batch_size)"
    require_memory(asked, need.total_bytes - WEIGHT_BYTES * model_weights(base))


def choose_branch(wanted: BranchSettings, recommended: int | None, backbone: BackboneConfig) -> BranchConfig:
    """Where the branch starts: the recipe's layer, else the probe's, else L - depth. Raises FlasharError."""
    layer = next(
        value for value in (wanted.layer, recommended, max(0, backbone.num_layers - wanted.depth)) if value is not None
    )
    if layer > backbone.num_layers:
        raise FlasharError(f"--branch-layer is {layer}; expected 0..{backbone.num_layers}")
    gate_dim = default_gate_dim(wanted.gate, backbone.dim, backbone.vocab_size)
    return BranchConfig(layer=layer, depth=wanted.depth, gate=wanted.gate, gate_dim=gate_dim)
