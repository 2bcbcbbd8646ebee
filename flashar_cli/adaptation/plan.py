"""What an adaptation will take, computed before it starts: parameters, steps, memory, hours."""

from __future__ import annotations

import math
from typing import Any

import torch

from flashar_cli.config import BranchConfig, ModelConfig
from flashar_cli.config.recipe import AdaptRecipe
from flashar_cli.machine.rates import matmul_flops_per_s
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.training.flops import training_flops
from flashar_cli.training.memory import estimate_memory

# Assumed where there is no GPU: 80 GB as of an A100 or H100, and the dense bfloat16 peak of an A100.
ASSUMED_DEVICE_BYTES = 80 * 2**30
ASSUMED_FLOPS_PER_S = 312e12
# Share of the peak that training is expected to reach.
EXPECTED_UTILISATION = 0.4


def describe(
    base: ModelConfig,
    branch: BranchConfig,
    recipe: AdaptRecipe,
    num_processes: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The JSON of ``--dry-run``: on CUDA for this device, whose rate is measured, else for an assumed GPU."""
    measured = device.type == "cuda"
    device_bytes = torch.cuda.mem_get_info(device)[1] if measured else ASSUMED_DEVICE_BYTES
    rate = matmul_flops_per_s(device, dtype) if measured else ASSUMED_FLOPS_PER_S
    config = base.model_copy(update={"branch": branch})
    with torch.device("meta"):
        before, after = (sum(p.numel() for p in FlasharModel(each).parameters()) for each in (base, config))
    optim, engine = recipe.optim, recipe.engine
    share = math.ceil(optim.batch_size / num_processes)
    memory = estimate_memory(config, engine, optim.batch_size, num_processes, device_bytes, dtype)
    flops = sum(stage.steps * optim.batch_size * training_flops(config, stage.settings) for stage in recipe.stages)
    return {
        "branch": branch.model_dump(),
        "parameters": {"base": before, "branch": after - before},
        "steps": {stage.name: stage.steps for stage in recipe.stages},
        "images_per_step": optim.batch_size,
        "processes": num_processes,
        "dtype": str(dtype).removeprefix("torch."),
        "forwards_per_step": math.ceil(share / min(engine.micro_batch_size, share)),
        "memory_per_device": memory.document(),
        "largest_micro_batch_size": memory.largest_micro_batch(device_bytes),
        "fits": memory.total_bytes <= device_bytes,
        "device": {"bytes": device_bytes, "matmul_flops_per_s": rate, "measured": measured},
        "training_flops": flops,
        "expected_hours": round(flops / (EXPECTED_UTILISATION * rate * num_processes) / 3600, 2),
        "recipe": recipe.model_dump(mode="json"),
    }
