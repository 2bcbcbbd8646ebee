"""Small next-scale models, and one batch through a plan of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashar_cli.config import NextScaleConfig, Pruning, Sampling
from flashar_cli.decoding.decoder import StepHook
from flashar_cli.decoding.next_scale.plan import ScaleKey, ScalePlan
from flashar_cli.grid import Grid
from flashar_cli.models.next_scale.model import NextScaleModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.attention import attention_kernels
from flashar_cli.nn.sampling import uniform_table
from flashar_cli.tokenizers.next_scale import ScaleQuantizer, build_quantizer
from tests.models.next_scale.test_condition import captions
from tests.tiny_models import build_scale_model, infinity_like_config, var_like_config

# A model, and the last map of an image of it: learned positions, two other shapes, squares of positions.
CASES: dict[str, tuple[NextScaleConfig, Grid]] = {
    "var": (var_like_config(), Grid(3, 5)),
    "tall": (infinity_like_config(), Grid(7, 4)),
    "wide": (infinity_like_config(), Grid(3, 8)),
    "short": (infinity_like_config(), Grid(5, 3)),
    "patches": (infinity_like_config(patch=2), Grid(7, 4)),
}


def model_of(config: NextScaleConfig, seed: int = 0) -> tuple[NextScaleModel, ScaleQuantizer]:
    """A random model and the quantizer of its tokenizer."""
    torch.manual_seed(seed)
    return build_scale_model(config, seed), build_quantizer(config.tokenizer).requires_grad_(False)


def conditions_of(config: NextScaleConfig, batch: int, lengths: Sequence[int] = (4, 6, 1)) -> Conditions:
    """Classes, or captions of these lengths."""
    if config.cross_attention:
        return captions(list(lengths[:batch]))
    return Conditions(labels=torch.tensor([7, 0, 3][:batch]))


def num_choices(model: NextScaleModel, grid: Grid) -> int:
    return model.config.num_choices * sum(scale.num_cells for scale in model.config.scales(grid))


def uniform_of(model: NextScaleModel, grid: Grid, batch: int, seed: int = 0) -> Tensor:
    return uniform_table(seed, 0, batch, num_choices(model, grid))


def plan_of(
    parts: tuple[NextScaleModel, ScaleQuantizer],
    conditions: Conditions,
    grid: Grid,
    sampling: Sampling,
    pruning: Pruning | None = None,
) -> ScalePlan:
    model, quantizer = parts
    return ScalePlan(model, quantizer, ScaleKey.of("scale", model, conditions, sampling, grid, pruning))


@torch.inference_mode()
def decode_with(
    plan: ScalePlan,
    conditions: Conditions,
    sampling: Sampling,
    uniform: Tensor,
    on_step: StepHook | None = None,
) -> Tensor:
    """The tokens of all scales."""
    plan.load(conditions, sampling, uniform)
    with attention_kernels():
        plan.run(on_step)
    return plan.tokens()


def decode(
    parts: tuple[NextScaleModel, ScaleQuantizer],
    conditions: Conditions,
    grid: Grid,
    sampling: Sampling,
    pruning: Pruning | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """The tokens of all scales, and the logits of each."""
    plan, logits = plan_of(parts, conditions, grid, sampling, pruning), []
    uniform = uniform_of(parts[0], grid, len(conditions), seed)
    tokens = decode_with(plan, conditions, sampling, uniform, lambda _, each: logits.append(each.clone()))
    return tokens, logits
