"""How long a bench will take, from one timed step of each decoder.

Letters: R rows (B images, or 2B with guidance), C cells of a step.
"""

from __future__ import annotations

from functools import partial

import torch

from flashar_cli.benchmarking.run import DECODERS, Plan, example_conditions
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.benchmarking.timing import best_s
from flashar_cli.decoding.decoder import choose_order, decode_step, prefill


@torch.inference_mode()
def expected_s(subject: BenchModel, plan: Plan) -> float:
    """Expected seconds of ``bench``, on the long side: the middle step of a diagonal order is its largest."""
    model = subject.model
    total = 0.0
    for batch_size in plan.batch_sizes:
        conditions = example_conditions(model.config, batch_size, plan.seed).to(model.device)
        for name in DECODERS:
            order = choose_order(model, name)
            middle = order.num_steps // 2
            seconds = 0.0
            if middle > 0:
                state, logits_RCV = prefill(model, conditions, order, plan.params.guided)
                num_cells = len(order.steps[middle - 1])
                codes_RC = torch.zeros(len(logits_RCV), num_cells, dtype=torch.int64, device=model.device)
                # The cache is empty beyond the prefix, which changes the values but not the work.
                step = partial(decode_step, state, middle, codes_RC)
                seconds = order.num_steps * best_s(step, model.device, repeats=2)
            total += seconds
        if subject.tokenizer is not None:
            total += len(DECODERS) * _token_decode_s(subject, batch_size)
    return total * (plan.warmup + plan.repeats)


def _token_decode_s(subject: BenchModel, batch_size: int) -> float:
    tokenizer, grid = subject.tokenizer, subject.model.config.order_grid
    assert tokenizer is not None
    codes_BHW = torch.zeros(batch_size, grid.height, grid.width, dtype=torch.int64, device=subject.model.device)
    return best_s(lambda: tokenizer.decode_unchecked(codes_BHW), subject.model.device, repeats=1)
