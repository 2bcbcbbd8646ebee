"""Where the time of a decode goes, by kernel: python benchmarks/profile_decode.py llamagen-xl --random-weights
--res 512 --arm flashar-graph --out FILE

One batch under PyTorch's profiler: kernels, copies and fills on CUDA, operators on a CPU. For each name: calls, time
and share; and how long nothing ran. The same batch is timed without the profiler too, which slows launches down. --sdpa
flash, cudnn, efficient or math puts one of SDPA's back-ends first, to compare them; without it the order is that of
every decode (flash, then efficient, then math).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from flashar_cli.benchmarking.arms import check_arms, is_known_arm, prepare
from flashar_cli.benchmarking.measure import floor_of, run_once
from flashar_cli.benchmarking.plan import Batch, Plan
from flashar_cli.benchmarking.reports import tables
from flashar_cli.benchmarking.subject import dtype_name, load_subject
from flashar_cli.cli.options import resolve_device
from flashar_cli.errors import FlasharError
from flashar_cli.files.writing import atomic_file, refuse_unwritable
from flashar_cli.machine.environment import hardware, software
from flashar_cli.machine.launches import profiled_events
from flashar_cli.machine.rates import measure_rates
from flashar_cli.machine.timing import quartiles
from flashar_cli.nn.attention import DECODING_KERNELS

NAME_LENGTH = 200
RUNS = 5
DEFAULT_SDPA = "auto"
# The others run where the first can't: on CUDA flash takes no mask, which the prefix has, and neither flash nor cuDNN
# takes heads as large as the tokenizer's.
SDPA: dict[str, tuple[SDPBackend, ...]] = {
    DEFAULT_SDPA: DECODING_KERNELS,
    "flash": (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "cudnn": (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "efficient": (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    "math": (SDPBackend.MATH,),
}
ONLY_ON_CUDA = ("cudnn", "efficient")


@dataclass(frozen=True)
class Span:
    """Something that ran, on a clock in nanoseconds. ``lane`` is its stream or thread."""

    name: str
    start_ns: int
    end_ns: int
    lane: int = 0


@dataclass(frozen=True)
class KernelTime:
    """All calls of one name. ``share`` is that of the time in which anything ran."""

    name: str
    calls: int
    total_s: float
    share: float


@dataclass(frozen=True)
class Profile:
    """``span_s`` from the first start to the last end; in ``idle_share`` of it nothing ran, in ``num_gaps`` gaps."""

    span_s: float
    busy_s: float
    idle_share: float
    num_gaps: int
    longest_gap_s: float
    num_calls: int
    kernels: tuple[KernelTime, ...]


def summarise(spans: Sequence[Span]) -> Profile:
    """Time by name, without that of inner calls in the same lane; and the gaps in which nothing ran."""
    assert spans, "a decode runs something"
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    totals: dict[str, list[int]] = {}
    open_spans: dict[int, list[Span]] = {}
    busy_ns = longest_ns = num_gaps = 0
    reached_ns = ordered[0].start_ns
    for span in ordered:
        own = totals.setdefault(span.name, [0, 0])
        own[0] += 1
        own[1] += span.end_ns - span.start_ns
        outer = open_spans.setdefault(span.lane, [])
        while outer and outer[-1].end_ns <= span.start_ns:
            outer.pop()
        if outer:
            totals[outer[-1].name][1] -= min(span.end_ns, outer[-1].end_ns) - span.start_ns
        outer.append(span)
        gap_ns = span.start_ns - reached_ns
        if gap_ns > 0:
            num_gaps += 1
            longest_ns = max(longest_ns, gap_ns)
        busy_ns += max(0, span.end_ns - max(span.start_ns, reached_ns))
        reached_ns = max(reached_ns, span.end_ns)
    span_ns = reached_ns - ordered[0].start_ns
    all_ns = sum(total for _, total in totals.values())
    kernels = [
        KernelTime(name, calls, total / 1e9, total / all_ns if all_ns else 0.0)
        for name, (calls, total) in totals.items()
    ]
    return Profile(
        span_s=span_ns / 1e9,
        busy_s=busy_ns / 1e9,
        idle_share=1 - busy_ns / span_ns if span_ns else 0.0,
        num_gaps=num_gaps,
        longest_gap_s=longest_ns / 1e9,
        num_calls=len(ordered),
        kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.total_s)),
    )


def recorded(work: Callable[[], object], device: torch.device) -> tuple[list[Span], bool]:
    """What ran on the device during ``work``, on a CPU the operators by thread; and whether the profiler was full."""
    on_gpu = device.type == "cuda"
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    spans = []
    events, truncated = profiled_events(work, device)
    for event in events:
        if event.device_type() == wanted and event.duration_ns() > 0:
            lane = event.device_resource_id() if on_gpu else event.start_thread_id()
            start = event.start_ns()
            spans.append(Span(event.name()[:NAME_LENGTH], start, start + event.duration_ns(), lane))
    return spans, truncated


def check_arm(arm: str, device: torch.device) -> None:
    """Raises FlasharError unless it is one arm of ours that the device can have."""
    if not is_known_arm(arm):
        raise FlasharError(f"--arm is '{arm}'; expected one arm of ours, such as raster-eager")
    check_arms((arm,), device, False)


def check_sdpa(name: str, device: torch.device) -> None:
    """Raises FlasharError where the device has no SDPA back-end of that name."""
    if name in ONLY_ON_CUDA and device.type != "cuda":
        raise FlasharError(f"--sdpa is {name}, which is for cuda devices, and --device is {device}; use flash or math")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="where the time of a decode goes, by kernel")
    parser.add_argument("model")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--res", type=int, help="side of the images in pixels; default: the model's")
    parser.add_argument("--arm", default="flashar-graph", help="DECODER-LEVEL, as flashar bench names them")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sdpa", choices=tuple(SDPA), default=DEFAULT_SDPA, help="runs where it can")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:I")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16, CPU: float32")
    parser.add_argument("--top", type=int, default=40, help="names that are kept")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    return parser


def main() -> int:
    args = make_parser().parse_args()
    try:
        device = resolve_device(args.device)
        check_arm(args.arm, device)
        if args.batch_size < 1:
            raise FlasharError(f"--batch-size is {args.batch_size}; expected a whole number from 1")
        check_sdpa(args.sdpa, device)
        refuse_unwritable(args.out)
        # Compiled code keeps the back-end that came first when it was compiled, and the caches of torch.compile, which
        # outlive a process, do not tell back-ends apart.
        with torch.compiler.config.patch(force_disable_caches=args.sdpa != DEFAULT_SDPA):
            document = profile_arm(args, device)
    except FlasharError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with atomic_file(args.out) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode())
    show(document)
    return 0


@torch.inference_mode()
def profile_arm(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Prepares an arm, times it, and profiles one batch."""
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    subject = load_subject(args.model, () if args.res is None else (args.res,), args.random_weights, device, dtype, 0)
    model = subject.model
    grid, sampling = model.config.order_grid, model.config.generation
    plan = Plan((args.batch_size,), RUNS, 1, sampling, 0, (args.arm,), (grid,))
    batch = Batch.of(plan, model, grid, args.batch_size)
    sampler = prepare(subject, args.arm, batch, SDPA[args.sdpa])
    run_once(sampler, device)
    runs = [run_once(sampler, device) for _ in range(RUNS)]
    unprofiled_s = quartiles([run.generation for run in runs])[1]
    floor = floor_of(model, args.arm, batch.workload(model), measure_rates(device, dtype))
    # Last of all: a profiler may stay attached to a GPU, and slow what is timed after it.
    spans, truncated = recorded(lambda: sampler.sample(lambda: None), device)
    profile = summarise(spans)
    return {
        "model": subject.name,
        "weights": subject.weights,
        "grid": str(grid),
        "arm": args.arm,
        "batch_size": args.batch_size,
        "sdpa": args.sdpa,
        "dtype": dtype_name(dtype),
        "hardware": hardware(device).model_dump(),
        "software": software().model_dump(),
        "unit": "kernels" if device.type == "cuda" else "operators",
        "token_generation_s": unprofiled_s,
        "floor_s": floor.seconds,
        # The profiler lengthens gaps, hardly the kernels: this is the idle share without it.
        "idle_share_unprofiled": max(0.0, 1 - profile.busy_s / unprofiled_s),
        "truncated": truncated,
        **asdict(profile),
        "kernels": [asdict(kernel) for kernel in profile.kernels[: args.top]],
        "num_names": len(profile.kernels),
    }


def show(document: dict[str, Any]) -> None:
    """The table, on stderr."""
    facts = {key: document[key] for key in ("model", "grid", "arm", "batch_size", "sdpa", "dtype", "unit")}
    print(", ".join(f"{key} {value}" for key, value in facts.items()), file=sys.stderr)
    if document["truncated"]:
        print("the profiler's buffers were full: there were more calls than these, and later ones", file=sys.stderr)
    print(
        f"token generation {document['token_generation_s'] * 1e3:.2f} ms (floor {document['floor_s'] * 1e3:.2f}), "
        f"busy {document['busy_s'] * 1e3:.2f} ms, idle {document['idle_share_unprofiled']:.0%}; while profiled "
        f"{document['span_s'] * 1e3:.2f} ms, idle {document['idle_share']:.0%} in {document['num_gaps']} gaps, the "
        f"longest {document['longest_gap_s'] * 1e6:.0f} us",
        file=sys.stderr,
    )
    rows = [
        [each["name"][:90], str(each["calls"]), f"{each['total_s'] * 1e3:.3f}", f"{each['share']:.1%}"]
        for each in document["kernels"][:20]
    ]
    print(tables.markdown((["name", "calls", "total ms", "share"], rows)), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
