"""What to adapt, how, and where to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.config import BranchConfig, ModelConfig, default_gate_dim
from flashar_cli.config.recipe import AdaptRecipe, BranchSettings, load_recipe, shipped_recipes
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.machine.memory import free_bytes, require_memory
from flashar_cli.machine.world import current_world
from flashar_cli.probing.report import read_probe, read_recommendation
from flashar_cli.training.memory import WEIGHT_BYTES, estimate_memory


@dataclass(frozen=True)
class AdaptJob:
    """``base_name`` goes into provenance, ``base_sha256`` identifies the base; ``probe`` is the content of a
    ``probe.json`` for the report.
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
        return choose_branch(self.recipe.branch, self.recommended_layer, self.loaded.config)

    @property
    def run_dir(self) -> Path:
        """The folder of metrics, samples and training state until the run is finished."""
        return run_dir(self.out)


def run_dir(out: Path) -> Path:
    """The run's folder, beside the checkpoint that it will write."""
    return out.parent / f"{out.name}.run"


def choose_recipe(
    name: str, family: str, recipe: str | None, overrides: list[str] | None, values: Mapping[str, Any]
) -> AdaptRecipe:
    """The recipe of this name or file, else that of the preset ``name``, else that of the model's family, else the
    defaults. Raises FlasharError as ``load_recipe``.
    """
    if recipe is None:
        recipe = next((known for known in (name, f"{name}-80k", f"{family}-80k") if known in shipped_recipes()), None)
    return load_recipe(recipe, overrides or [], values)


def load_job(
    directory: Path,
    name: str,
    recipe: AdaptRecipe,
    probe: Path | None,
    out: Path,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> AdaptJob:
    """Loads the base, and checks all that can be checked before data is read. Raises FlasharError."""
    if dtype is torch.float16:
        raise FlasharError("--dtype float16 is too narrow for gradients; train in bfloat16 or float32")
    loaded, sha256 = checkpoint.load(directory, device, torch.float32), checkpoint.weights_sha256(directory)
    recommended, probed = None, None
    if probe is not None:
        recommended = read_recommendation(probe, loaded.config, sha256, recipe.branch.depth)
        probed = read_probe(probe)
    job = AdaptJob(
        loaded=loaded,
        base_name=Path(name).name,
        base_sha256=sha256,
        recipe=recipe,
        recommended_layer=recommended,
        out=out,
        seed=seed,
        dtype=dtype,
        stored_dtype=checkpoint.stored_dtype(directory),
        probe=probed,
    )
    if loaded.model.branch is not None:
        raise FlasharError(f"{job.base_name} has a vertical branch already; adapt its raster base")
    config = loaded.config.model_copy(update={"branch": job.branch})
    if device.type == "cpu":  # there the system kills a process that runs out of memory
        world_size, batch_size = current_world().size, recipe.optim.batch_size
        need = estimate_memory(config, recipe.engine, batch_size, world_size, free_bytes(), dtype)
        asked = f"training {need.images_per_forward} images at a time (engine.micro_batch_size)"
        require_memory(asked, need.total_bytes - WEIGHT_BYTES * loaded.config.num_weights)
    return job


def choose_branch(wanted: BranchSettings, recommended: int | None, base: ModelConfig) -> BranchConfig:
    """The branch to add: from the recipe's layer on, else the probe's, else L - depth. The family says whether it sees
    the prefix. Raises FlasharError.
    """
    backbone, sees_prefix = base.backbone, get_family(base.family).new_branch_sees_prefix
    layer = next(
        value for value in (wanted.layer, recommended, max(0, backbone.num_layers - wanted.depth)) if value is not None
    )
    if layer > backbone.num_layers:
        raise FlasharError(f"--branch-layer is {layer}; expected 0..{backbone.num_layers}")
    gate_dim = default_gate_dim(wanted.gate, backbone.dim, backbone.vocab_size)
    return BranchConfig(layer=layer, depth=wanted.depth, sees_prefix=sees_prefix, gate=wanted.gate, gate_dim=gate_dim)
