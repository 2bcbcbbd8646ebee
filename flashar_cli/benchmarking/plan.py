"""What a bench is to do, and what each arm of it can't do without.

Letters: B images, P prefix tokens, F text-feature dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashar_cli.benchmarking.arms import DEFAULT_ARMS
from flashar_cli.benchmarking.floor import Floor, Rates, forward_costs
from flashar_cli.benchmarking.published import decoder_of
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.quantize import is_quantized
from flashar_cli.grid import Grid
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams


@dataclass(frozen=True)
class Plan:
    """What takes turns, how often, how many pictures at once, and with which sampling.

    ``grids`` empty: the model's own. ``sweep_end`` says why a sweep has no larger batch sizes.
    """

    batch_sizes: tuple[int, ...]
    repeats: int
    warmup: int
    params: SamplingParams
    seed: int
    arms: tuple[str, ...] = DEFAULT_ARMS
    grids: tuple[Grid, ...] = ()
    sweep_end: str | None = None


def num_runs(plan: Plan) -> int:
    """Whole decodes that ``bench`` will do at most: the last of each arm counts what it launches."""
    return max(1, len(plan.grids)) * len(plan.batch_sizes) * len(plan.arms) * (plan.warmup + plan.repeats + 1)


def example_conditions(config: ModelConfig, batch_size: int, seed: int) -> Conditions:
    """Something to draw: classes in turn, or random caption features of full length."""
    prefix = config.prefix
    if isinstance(prefix, ClassPrefix):
        return Conditions(labels=torch.arange(batch_size) % prefix.num_classes)
    generator = torch.Generator().manual_seed(seed)
    features_BPF = torch.randn(batch_size, prefix.length, prefix.feature_dim, generator=generator)
    return Conditions(features=features_BPF, mask=torch.ones(batch_size, prefix.length))


def floor_of(model: FlasharModel, arm: str, batch_size: int, params: SamplingParams, rates: Rates) -> Floor:
    """What an arm can't do without for one batch."""
    order = choose_order(model, decoder_of(arm, model.config.family))
    rows = batch_size * (2 if params.guided else 1)
    costs = forward_costs(model.config, order, rows, model.dtype.itemsize, is_quantized(model))
    return Floor.of(costs, rates)
