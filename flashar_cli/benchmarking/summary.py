"""What was measured, as parts of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from flashar_cli.benchmarking import environment
from flashar_cli.benchmarking.arms import LEVELS, UPSTREAM, split_arm
from flashar_cli.benchmarking.floor import Floor, Rates
from flashar_cli.benchmarking.measure import Measured
from flashar_cli.benchmarking.plan import Plan
from flashar_cli.benchmarking.reports.document import ArmReport, Seconds, Settings, Speedup, Subject
from flashar_cli.benchmarking.subject import BenchModel
from flashar_cli.decoding.pixels import pixel_dtype
from flashar_cli.grid import Grid


def arm_report(name: str, arm: Measured, batch_size: int, floor: Floor, rates: Rates) -> ArmReport:
    """All numbers of an arm."""
    decoder, level = split_arm(name)
    generation_s = Seconds.of([prefix + decode for prefix, decode, *_ in arm.runs_s])
    token_decode_s = [run[2] for run in arm.runs_s if len(run) > 2]
    read_bytes_per_s = floor.read_bytes / generation_s.median_s
    return ArmReport.model_validate(
        {
            "name": name,
            "decoder": decoder,
            "level": level,
            "forwards_per_image": arm.num_forwards,
            "launches": arm.launches,
            "prepare_s": arm.prepare_s,
            "token_generation_s": generation_s,
            "prefix_s": Seconds.of([run[0] for run in arm.runs_s]),
            "decode_s": Seconds.of([run[1] for run in arm.runs_s]),
            "token_decode_s": Seconds.of(token_decode_s) if token_decode_s else None,
            "images_per_s": batch_size / generation_s.median_s,
            "warmup_s": tuple(arm.warmup_s),
            "peak_memory_bytes": arm.memory.peak_bytes,
            "read_bytes": floor.read_bytes,
            "flops": floor.flops,
            "read_bytes_per_s": read_bytes_per_s,
            "share_of_copy": read_bytes_per_s / rates.copy_bytes_per_s,
            "floor_s": floor.seconds,
            "times_floor": generation_s.median_s / floor.seconds,
        }
    )


def speedups_of(reports: tuple[ArmReport, ...], arms: Mapping[str, Measured]) -> Iterator[Speedup]:
    """FlashAR over raster at the same level, from the worst level on; then everything over upstream."""
    named = {report.name: report for report in reports}
    pairs = [(f"flashar-{level}", f"raster-{level}") for level in LEVELS]
    pairs += [(name, UPSTREAM) for name in named if name != UPSTREAM]
    for fast, slow in pairs:
        if fast in named and slow in named:
            yield Speedup(
                arm=fast,
                over=slow,
                token_generation=named[slow].token_generation_s.median_s / named[fast].token_generation_s.median_s,
                with_token_decode=_with_token_decode(arms[slow], arms[fast]),
                floor=named[slow].floor_s / named[fast].floor_s,
            )


def describe(subject: BenchModel, grids: Sequence[Grid]) -> Subject:
    """What is benched."""
    config = subject.model.config
    assert config.branch is not None, "a branch is added where the checkpoint has none"
    branch = config.branch
    return Subject(
        name=subject.name,
        family=config.family,
        weights=subject.weights,
        grid=", ".join(map(str, grids)),
        num_parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
        branch=f"layer {branch.layer}, depth {branch.depth}, gate {branch.gate}",
        branch_added=subject.branch_added,
    )


def settings_of(subject: BenchModel, plan: Plan) -> Settings:
    """How it is benched."""
    model = subject.model
    return Settings(
        device=model.device.type,
        dtype=dtype_name(model.dtype),
        quantize=subject.quantize,
        num_threads=torch.get_num_threads(),
        arms=plan.arms,
        batch_sizes=plan.batch_sizes,
        repeats=plan.repeats,
        warmup=plan.warmup,
        cfg_scale=plan.params.cfg_scale,
        temperature=plan.params.temperature,
        top_k=plan.params.top_k,
        top_p=plan.params.top_p,
        seed=plan.seed,
        pixel_dtype=None if subject.tokenizer is None else dtype_name(pixel_dtype(model.device, model.dtype)),
        num_interop_threads=torch.get_num_interop_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        tf32=torch.backends.cuda.matmul.allow_tf32,
        cfg_interval=plan.params.cfg_interval,
        sdpa_backends=environment.sdpa_backends(),
        with_pixels=subject.tokenizer is not None,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, as reports have it."""
    return str(dtype).removeprefix("torch.")


def _with_token_decode(slow: Measured, fast: Measured) -> float | None:
    if slow.sampler.to_pixels is None or fast.sampler.to_pixels is None:
        return None
    slow_s, fast_s = (Seconds.of([sum(run) for run in arm.runs_s]).median_s for arm in (slow, fast))
    return slow_s / fast_s
