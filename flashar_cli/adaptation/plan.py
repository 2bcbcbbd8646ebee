"""What an adaptation will take, computed before it starts: parameters, steps, memory, hours."""

from __future__ import annotations

import math
from typing import Any

import torch

from flashar_cli.config import RasterConfig
from flashar_cli.config.recipe import AdaptRecipe
from flashar_cli.machine.rates import matmul_flops_per_s
from flashar_cli.training.flops import training_flops
from flashar_cli.training.memory import Measured, estimate_memory, ways_that_fit

# Assumed where there is no GPU: 80 GB as of an A100 or H100, and the dense bfloat16 peak of an A100.
ASSUMED_DEVICE_BYTES = 80 * 2**30
ASSUMED_FLOPS_PER_S = 312e12
# Share of the peak that training is expected to reach.
EXPECTED_UTILISATION = 0.4


def describe(
    base: RasterConfig,
    config: RasterConfig,
    recipe: AdaptRecipe,
    num_processes: int,
    device: torch.device,
    dtype: torch.dtype,
    stored_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """The JSON of ``--dry-run``, for a base that becomes ``config``: on CUDA for this device, whose rate is measured,
    else for an assumed GPU. ``stored_dtype`` is that of the base's files, None where they are not at hand: ``dtype``.
    """
    on_cuda = device.type == "cuda"
    device_bytes = torch.cuda.mem_get_info(device)[1] if on_cuda else ASSUMED_DEVICE_BYTES
    rate = matmul_flops_per_s(device, dtype) if on_cuda else ASSUMED_FLOPS_PER_S
    before, after = base.num_weights, config.num_weights
    optim, engine = recipe.optim, recipe.engine
    share = math.ceil(optim.batch_size / num_processes)
    lora, measured = recipe.lora, Measured.of(config, engine, dtype)
    memory = estimate_memory(
        config, engine, optim.batch_size, num_processes, device_bytes, dtype, lora, stored_dtype, measured
    )
    ways = []
    if config.diffusion is None:  # which is neither sharded nor trained by adapters
        ways = ways_that_fit(config, engine, optim.batch_size, device_bytes, dtype, lora, stored_dtype, measured)
    flops = sum(
        stage.steps * optim.batch_size * training_flops(config, stage.settings, lora) for stage in recipe.stages
    )
    return {
        **{
            name: part.model_dump()
            for name, part in (("branch", config.branch), ("diffusion", config.diffusion))
            if part
        },
        "parameters": {"base": before, "added": after - before, "adapters": lora.num_weights(config.backbone)},
        "steps": {stage.name: stage.steps for stage in recipe.stages},
        "images_per_step": optim.batch_size,
        "processes": num_processes,
        "dtype": str(dtype).removeprefix("torch."),
        "forwards_per_step": math.ceil(share / min(engine.micro_batch_size, share)),
        "memory_per_device": memory.document(),
        "largest_micro_batch_size": memory.largest_micro_batch(device_bytes),
        "fits": memory.total_bytes <= device_bytes,
        "ways": [each.document() | {"fits": fits} for each, fits in ways],
        "device": {"bytes": device_bytes, "matmul_flops_per_s": rate, "measured": on_cuda},
        "training_flops": flops,
        "expected_hours": round(flops / (EXPECTED_UTILISATION * rate * num_processes) / 3600, 2),
        "recipe": recipe.model_dump(mode="json"),
    }
