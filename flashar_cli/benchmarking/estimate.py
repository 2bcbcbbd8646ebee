"""What a bench will take, before it runs: the floor of each decoder, and the expected time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch

from flashar_cli.benchmarking.arms import split_arm
from flashar_cli.benchmarking.measure import floor_of
from flashar_cli.benchmarking.plan import Batch, Plan
from flashar_cli.benchmarking.published import decoder_of
from flashar_cli.benchmarking.reports.tables import Table, short
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.decoders import decoders_of, get_decoder
from flashar_cli.decoding.failures import is_out_of_memory
from flashar_cli.decoding.pixels import pixel_decoder_of
from flashar_cli.decoding.plan import DecodePlan
from flashar_cli.machine.rates import Rates
from flashar_cli.machine.timing import best_s


def roofline(subject: BenchModel, plan: Plan, rates: Rates) -> Table:
    """What each decoder can't do without."""
    header = ["grid", "batch", "decoder", "forwards", "reads GB", "computes TFLOP", "waits for"]
    arms = {split_arm(arm)[0]: arm for arm in plan.arms}
    rows = []
    for grid in plan.grids:
        one = Batch.of(plan, subject.model, grid, 1).workload(subject.model)
        for size in plan.batch_sizes:
            work = replace(one, rows=size * one.rows)
            for decoder, arm in arms.items():
                floor = floor_of(subject.model, arm, work, rates)
                bound = floor.num_memory_bound
                waits = "memory" if bound == floor.num_forwards else f"memory in {bound}" if bound else "products"
                work_done = [short(floor.read_bytes / 1e9), short(floor.flops / 1e12), waits]
                speed = [short(floor.seconds * 1000), short(size / floor.seconds)]
                rows.append([str(grid), str(size), decoder, str(floor.num_forwards), *work_done, *speed])
    return [*header, "floor ms", "floor img/s"], rows


@torch.inference_mode()
def expected_s(subject: BenchModel, plan: Plan) -> float:
    """Expected seconds of ``bench``, on the long side: every level counts as eager, every step as the largest one."""
    device, total = subject.model.device, 0.0
    decode_pixels = pixel_decoder_of(subject.model, subject.tokenizer) if subject.makes_pixels else None
    for grid in plan.grids:
        for size in plan.batch_sizes:
            try:
                total += _arms_s(subject, Batch.of(plan, subject.model, grid, size), plan.arms)
                if decode_pixels is not None:
                    shape = decoders_of(subject.model.config)[0].token_shape(subject.model.config, grid)
                    tokens = torch.zeros(size, *shape, dtype=torch.int64, device=device)
                    total += len(plan.arms) * best_s(partial(decode_pixels, tokens, grid), device, repeats=1)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break  # the bench won't get that far either
    return total * (plan.warmup + plan.repeats + 1)


@torch.inference_mode()
def expected_agreement_s(subject: BenchModel, plan: Plan, arms: Iterable[str]) -> float:
    """Expected seconds of comparing arms with float32: each samples one image and is fed one."""
    return 2 * _arms_s(subject, Batch.of(plan, subject.model, plan.grids[0], 1), arms)


def _arms_s(subject: BenchModel, batch: Batch, arms: Iterable[str]) -> float:
    decoders = [decoder_of(arm, subject.model.config.family) for arm in arms]
    seconds = {decoder: _decode_s(subject, batch, decoder) for decoder in set(decoders)}
    return sum(seconds[decoder] for decoder in decoders)


def _decode_s(subject: BenchModel, batch: Batch, name: str) -> float:
    model, decoder = subject.model, get_decoder(name)
    key = decoder.key(model, batch.conditions, batch.sampling, batch.grid)
    plan = decoder.plan(model, subject.tokenizer, key)
    plan.load(batch.conditions, batch.sampling, batch.uniform_BN)
    if not isinstance(plan, DecodePlan):  # no step stands for the others
        return best_s(plan.run, model.device, repeats=1)
    order = plan.order
    middle = order.num_steps // 2
    if middle == 0:
        return 0.0
    tokens_RC = torch.zeros(plan.num_rows, len(order.fed[middle - 1]), dtype=torch.int64, device=model.device)
    # The cache is empty, which changes the values but not the work.
    return order.num_steps * best_s(partial(plan.step, middle, tokens_RC), model.device, repeats=2)
