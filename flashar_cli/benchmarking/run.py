"""The protocol: both decoders in one process, on one model, in turn.

Letters: B images, N = H*W cells, P prefix tokens, F text-feature dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor

from flashar_cli.benchmarking import environment, timing
from flashar_cli.benchmarking.floor import Rates, floor_s, forward_costs
from flashar_cli.benchmarking.report import (
    ArmReport,
    BatchReport,
    BenchReport,
    RatesReport,
    Seconds,
    Settings,
    Subject,
)
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.config import ClassPrefix, ModelConfig
from flashar_cli.decoding.decoder import choose_order, decode
from flashar_cli.grid import Order
from flashar_cli.models.flashar import FlasharModel
from flashar_cli.models.prefix import Conditions
from flashar_cli.nn.sampling import SamplingParams, uniform_table

DECODERS = ("raster", "flashar")


@dataclass(frozen=True)
class Plan:
    """How often, how many at once, and with which sampling."""

    batch_sizes: tuple[int, ...]
    repeats: int
    warmup: int
    params: SamplingParams
    seed: int


@dataclass
class Arm:
    """One decoder at one batch size, and what was measured of it so far. Each run is (prefix, decode, token decode)."""

    order: Order
    runs_s: list[list[float]] = field(default_factory=list)
    warmup_s: list[float] = field(default_factory=list)
    num_forwards: int = 0
    peak_memory_bytes: int | None = None


@torch.inference_mode()
def bench(subject: BenchModel, plan: Plan, rates: Rates, on_run: Callable[[], None] = lambda: None) -> BenchReport:
    """Measures both decoders at every batch size. ``on_run`` is called after each run, warm-up included."""
    model = subject.model
    batches = tuple(_bench_batch(subject, plan, size, rates, on_run) for size in plan.batch_sizes)
    return BenchReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=environment.hardware(model.device),
        software=environment.software(),
        model=_describe(subject),
        settings=_settings(model, plan),
        rates=RatesReport(
            copy_bytes_per_s=rates.copy_bytes_per_s,
            matmul_flops_per_s=rates.matmul_flops_per_s,
        ),
        peak_rss_bytes=timing.peak_rss_bytes(),
        batches=batches,
    )


def num_runs(plan: Plan) -> int:
    """Whole decodes that ``bench`` will do."""
    return len(plan.batch_sizes) * len(DECODERS) * (plan.warmup + plan.repeats)


def example_conditions(config: ModelConfig, batch_size: int, seed: int) -> Conditions:
    """Something to draw: classes in turn, or random caption features of full length."""
    prefix = config.prefix
    if isinstance(prefix, ClassPrefix):
        return Conditions(labels=torch.arange(batch_size) % prefix.num_classes)
    generator = torch.Generator().manual_seed(seed)
    features_BPF = torch.randn(batch_size, prefix.length, prefix.feature_dim, generator=generator)
    return Conditions(features=features_BPF, mask=torch.ones(batch_size, prefix.length))


def run_once(
    subject: BenchModel, order: Order, conditions: Conditions, params: SamplingParams, uniform_BN: Tensor
) -> list[float]:
    """Draws one batch; seconds of prefix, decode and, with a tokenizer, token decode."""
    watch = timing.Stopwatch(subject.model.device)

    def on_step(step: int, logits: Tensor) -> None:
        if step == 0:
            watch.mark()

    watch.mark()
    codes_BHW = decode(subject.model, conditions, order, params, uniform_BN, on_step)
    watch.mark()
    if subject.tokenizer is not None:
        # Codes of a model are in range; checking them would wait for the device.
        subject.tokenizer.decode_unchecked(codes_BHW)
        watch.mark()
    return watch.durations_s()


@contextmanager
def counted_forwards(model: FlasharModel) -> Iterator[list[int]]:
    """Counts forwards of the backbone's first block in the one entry of the list."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    handle = model.backbone.blocks[0].register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()


def _bench_batch(
    subject: BenchModel, plan: Plan, batch_size: int, rates: Rates, on_run: Callable[[], None]
) -> BatchReport:
    model = subject.model
    device = model.device
    conditions = example_conditions(model.config, batch_size, plan.seed).to(device)
    uniform_BN = uniform_table(plan.seed, 0, batch_size, model.config.order_grid.num_cells).to(device)
    arms = {name: Arm(choose_order(model, name)) for name in DECODERS}

    for arm in arms.values():
        for _ in range(plan.warmup):
            with counted_forwards(model) as count:
                arm.warmup_s.append(sum(run_once(subject, arm.order, conditions, plan.params, uniform_BN)))
            arm.num_forwards = count[0]
            on_run()
    for _ in range(plan.repeats):
        for arm in arms.values():
            timing.reset_peak_memory(device)
            arm.runs_s.append(run_once(subject, arm.order, conditions, plan.params, uniform_BN))
            peak = timing.peak_memory_bytes(device)
            arm.peak_memory_bytes = None if peak is None else max(peak, arm.peak_memory_bytes or 0)
            on_run()

    raster, flashar = (_arm_report(model, arms[name], plan, batch_size, rates) for name in DECODERS)
    return BatchReport(
        batch_size=batch_size,
        speedup=raster.token_generation_s.median_s / flashar.token_generation_s.median_s,
        speedup_with_token_decode=_speedup_with_token_decode(arms),
        raster=raster,
        flashar=flashar,
    )


def _arm_report(model: FlasharModel, arm: Arm, plan: Plan, batch_size: int, rates: Rates) -> ArmReport:
    generation_s = Seconds.of([prefix + decode for prefix, decode, *_ in arm.runs_s])
    token_decode_s = [run[2] for run in arm.runs_s if len(run) > 2]
    rows = batch_size * (2 if plan.params.guided else 1)
    costs = forward_costs(model.config, arm.order, rows, model.dtype.itemsize)
    floor = floor_s(costs, rates)
    read_bytes_per_s = sum(cost.read_bytes for cost in costs) / generation_s.median_s
    return ArmReport(
        forwards_per_image=arm.num_forwards,
        token_generation_s=generation_s,
        prefix_s=Seconds.of([run[0] for run in arm.runs_s]),
        decode_s=Seconds.of([run[1] for run in arm.runs_s]),
        token_decode_s=Seconds.of(token_decode_s) if token_decode_s else None,
        images_per_s=batch_size / generation_s.median_s,
        warmup_s=tuple(arm.warmup_s),
        peak_memory_bytes=arm.peak_memory_bytes,
        read_bytes_per_s=read_bytes_per_s,
        share_of_copy=read_bytes_per_s / rates.copy_bytes_per_s,
        floor_s=floor,
        times_floor=generation_s.median_s / floor,
    )


def _speedup_with_token_decode(arms: dict[str, Arm]) -> float | None:
    if any(len(run) < 3 for arm in arms.values() for run in arm.runs_s):
        return None
    raster, flashar = (Seconds.of([sum(run) for run in arms[name].runs_s]).median_s for name in DECODERS)
    return raster / flashar


def _describe(subject: BenchModel) -> Subject:
    config = subject.model.config
    assert config.branch is not None, "a branch is added where the checkpoint has none"
    branch = config.branch
    return Subject(
        name=subject.name,
        family=config.family,
        weights=subject.weights,
        grid=str(config.order_grid),
        num_parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
        branch=f"layer {branch.layer}, depth {branch.depth}, gate {branch.gate}",
        branch_added=subject.branch_added,
    )


def _settings(model: FlasharModel, plan: Plan) -> Settings:
    return Settings(
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        num_threads=torch.get_num_threads(),
        optimisation="eager",
        batch_sizes=plan.batch_sizes,
        repeats=plan.repeats,
        warmup=plan.warmup,
        cfg_scale=plan.params.cfg_scale,
        temperature=plan.params.temperature,
        top_k=plan.params.top_k,
        top_p=plan.params.top_p,
        seed=plan.seed,
    )
