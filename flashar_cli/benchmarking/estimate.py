"""How long a bench will take, from one timed step of each decoder.

Letters: R rows (B images, or 2B with guidance), C cells of a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from flashar_cli.benchmarking.plan import Plan, example_conditions
from flashar_cli.benchmarking.published import decoder_of
from flashar_cli.benchmarking.subject import BenchModel, set_grid
from flashar_cli.benchmarking.timing import best_s
from flashar_cli.decoding.decoder import choose_order
from flashar_cli.decoding.engine import Engine
from flashar_cli.decoding.failures import is_out_of_memory
from flashar_cli.decoding.plan import DecodePlan, PlanKey


@torch.inference_mode()
def expected_s(subject: BenchModel, plan: Plan) -> float:
    """Expected seconds of ``bench``, on the long side: the middle step of a diagonal order is its largest, and every
    level of optimisation counts as the eager one, upstream's sampler as the decoder of ours that it is like.
    """
    own = subject.model.config.order_grid
    total = 0.0
    for grid in plan.grids or (own,):
        set_grid(subject, grid)
        for batch_size in plan.batch_sizes:
            decoders = [decoder_of(arm, subject.model.config.family) for arm in plan.arms]
            try:
                seconds = {decoder: _decode_s(subject, plan, batch_size, decoder) for decoder in set(decoders)}
                total += sum(seconds[decoder] for decoder in decoders)
                if subject.tokenizer is not None:
                    total += len(plan.arms) * _token_decode_s(subject, batch_size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break  # neither will the bench come so far
    set_grid(subject, own)
    return total * (plan.warmup + plan.repeats + 1)


@torch.inference_mode()
def expected_agreement_s(subject: BenchModel, plan: Plan, arms: Iterable[str]) -> float:
    """Expected seconds of what agreement asks of an arm or its reference: one picture drawn, one fed to it."""
    decoders = [decoder_of(arm, subject.model.config.family) for arm in arms]
    seconds = {decoder: _decode_s(subject, plan, 1, decoder) for decoder in set(decoders)}
    return 2 * sum(seconds[decoder] for decoder in decoders)


def _decode_s(subject: BenchModel, plan: Plan, batch_size: int, decoder: str) -> float:
    model = subject.model
    conditions = example_conditions(model.config, batch_size, plan.seed).to(model.device)
    order = choose_order(model, decoder)
    middle = order.num_steps // 2
    if middle == 0:
        return 0.0
    decode = DecodePlan(model, PlanKey.of(model, batch_size, order, plan.params.kind))
    decode.load(conditions, plan.params, torch.zeros(batch_size, len(order.cells)))
    codes_RC = torch.zeros(decode.num_rows, len(order.steps[middle - 1]), dtype=torch.int64, device=model.device)
    # The cache is empty, which changes the values but not the work.
    step = partial(decode.step, middle, codes_RC)
    return order.num_steps * best_s(step, model.device, repeats=2)


def _token_decode_s(subject: BenchModel, batch_size: int) -> float:
    engine, grid = Engine(subject.model, subject.tokenizer), subject.model.config.order_grid
    codes_BHW = torch.zeros(batch_size, grid.height, grid.width, dtype=torch.int64, device=subject.model.device)
    return best_s(lambda: engine.pixels(codes_BHW), subject.model.device, repeats=1)
