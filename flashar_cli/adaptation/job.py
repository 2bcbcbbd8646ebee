"""What to adapt, how, and where to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flashar_cli.checkpoints import checkpoint
from flashar_cli.checkpoints.checkpoint import Loaded
from flashar_cli.config import BranchConfig, DiffusionConfig, ModelConfig, RasterConfig, raster_only, read_config
from flashar_cli.config.recipe import AdaptRecipe, BranchSettings, load_recipe, shipped_recipes
from flashar_cli.errors import FlasharError
from flashar_cli.families import get_family
from flashar_cli.machine.memory import free_bytes, require_memory
from flashar_cli.machine.world import current_world
from flashar_cli.models.lora import peft_config
from flashar_cli.probing.report import read_probe, read_recommendation
from flashar_cli.training.memory import estimate_memory, frozen_dtype, model_bytes
from flashar_cli.training.parallel import chooses_sharding


@dataclass(frozen=True)
class AdaptJob:
    """``base_name`` goes into provenance, ``base_sha256`` identifies the base; ``probe`` is the content of a
    ``probe.json`` for the report. The model of ``loaded`` is in ``frozen_dtype``. Where it is to be
    ``sharded``, so that no process holds all of it, it has no data.
    """

    loaded: Loaded
    directory: Path
    device: torch.device
    base_name: str
    base_sha256: str
    recipe: AdaptRecipe
    recommended_layer: int | None
    out: Path
    seed: int
    dtype: torch.dtype
    stored_dtype: torch.dtype
    sharded: bool = False
    probe: dict[str, Any] | None = None

    @cached_property
    def config(self) -> RasterConfig:
        """That of the adapted model. Raises FlasharError."""
        return adapted_config(self.loaded.config, self.recipe, self.recommended_layer)

    @property
    def frozen_dtype(self) -> torch.dtype:
        """The dtype of the backbone in memory."""
        return frozen_dtype(self.recipe.lora, self.stored_dtype, self.dtype)

    @property
    def run_dir(self) -> Path:
        """The folder of metrics, samples and training state until the run is finished."""
        return run_dir(self.out)


def run_dir(out: Path) -> Path:
    """The run's folder, beside the checkpoint that it will write."""
    return out.parent / f"{out.name}.run"


def choose_recipe(
    name: str, base: ModelConfig, recipe: str | None, overrides: list[str] | None, values: Mapping[str, Any]
) -> AdaptRecipe:
    """The recipe of this name or file, else that of the preset ``name``, else that of the model's family, else the
    defaults. Raises FlasharError as ``load_recipe``, and for a model that can't be adapted.
    """
    family = raster_only(base, "adapt").family
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
    if probe is not None and recipe.method != "flashar":
        raise FlasharError(f"--probe is for the method flashar; {recipe.method} adds no branch")
    base, lora = raster_only(read_config(directory), "adapt"), recipe.lora
    if current_world().size == 1:  # before anything is read
        checkpoint.refuse_too_large(base, str(directory), device, torch.bfloat16 if lora.rank else torch.float32)
    stored = checkpoint.stored_dtype(directory)
    if not base.is_base:
        what = "has a vertical branch" if base.branch is not None else "draws blocks by diffusion"
        raise FlasharError(f"{Path(name).name} {what} already; adapt its raster base")
    if lora.rank:
        peft_config(lora)  # refused now rather than after the data is read
    sha256 = checkpoint.weights_sha256(directory)
    recommended, probed = None, None
    if probe is not None:
        recommended = read_recommendation(probe, base, sha256, recipe.branch.depth)
        probed = read_probe(probe)
    config = adapted_config(base, recipe, recommended)
    frozen, num_processes = frozen_dtype(lora, stored, dtype), current_world().size
    sharded = num_processes > 1 and chooses_sharding(recipe.engine, model_bytes(config, lora, frozen), device)
    if sharded and base.adapter:
        raise FlasharError(f"{directory} has adapters apart from its weights, which can't be sharded; merge them first")
    if sharded and config.diffusion is not None:
        raise FlasharError(
            "the method block-diffusion can't shard a model; expected one that each device can hold whole"
        )
    loaded = checkpoint.load_outline(directory, device) if sharded else checkpoint.load(directory, device, frozen)
    if device.type == "cpu":  # there the system kills a process that runs out of memory
        batch_size = recipe.optim.batch_size
        need = estimate_memory(config, recipe.engine, batch_size, num_processes, free_bytes(), dtype, lora, stored)
        asked = f"training {need.images_per_forward} images at a time (engine.micro_batch_size)"
        require_memory(asked, need.total_bytes - (0 if sharded else frozen.itemsize * base.num_weights))
    return AdaptJob(
        loaded=loaded,
        directory=directory,
        device=device,
        base_name=Path(name).name,
        base_sha256=sha256,
        recipe=recipe,
        recommended_layer=recommended,
        out=out,
        seed=seed,
        dtype=dtype,
        stored_dtype=stored,
        sharded=sharded,
        probe=probed,
    )


def adapted_config(base: RasterConfig, recipe: AdaptRecipe, recommended: int | None = None) -> RasterConfig:
    """What a base becomes by a recipe, and the layer that a probe recommends. Raises FlasharError."""
    base = base.model_copy(update={"generation": base.generation.changed(**recipe.generation.model_dump())})
    if recipe.method == "flashar":
        return base.model_copy(update={"branch": choose_branch(recipe.branch, recommended, base)})
    if base.prefix.has_line_ends:
        raise FlasharError("the method block-diffusion has no place for the tokens that end this model's rows")
    diffusion = DiffusionConfig(block=recipe.diffusion.block or base.grid.width)
    return base.model_copy(update={"diffusion": diffusion})


def choose_branch(wanted: BranchSettings, recommended: int | None, base: RasterConfig) -> BranchConfig:
    """The branch to add: from the recipe's layer on, else the probe's, else the family's. Raises FlasharError."""
    layer = recommended if wanted.layer is None else wanted.layer
    branch = get_family(base.family).new_branch(base.backbone, layer, wanted.depth, wanted.gate)
    if branch.layer > base.backbone.num_layers:
        raise FlasharError(f"--branch-layer is {branch.layer}; expected 0..{base.backbone.num_layers}")
    return branch
