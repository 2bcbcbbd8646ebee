"""The tests, benches and profiles of one GPU, as many as fit into one call: python -m benchmarks.gpu.suite OUT

`run_gpu.sh` calls it. cases.py holds the cases, the most important first. OUT gets results.json, an entry a case,
rewritten after each; running.json, what the running case has reported so far; log.txt, appended to; and an image. The
next call continues after what is done, in the same OUT or with --after. A case that fails or is stopped does not keep
the others from running; one that does not fit into the remaining time is skipped, and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.gpu.cases import CASES, REHEARSAL, Case
from benchmarks.gpu.process import GRACE_S, ROOT, run_logged
from benchmarks.gpu.results import FAILED, OK, RUNNING, SKIPPED, STOPPED, Entry, Results, read_json
from flashar_cli.errors import FlasharError

# A call is often ended by force after ten minutes; a minute is for what comes before and after the suite.
MINUTES = 9.0
# Of that, the time for ending a case and for the tables.
RESERVE_S = 2 * GRACE_S + 5
NEEDED = ("torch", "pydantic", "pydantic_core", "annotated_types", "typer", "rich", "safetensors", "PIL", "pytest")
# A case that takes this many times its expected time hangs, and would keep the others from running.
PATIENCE = 3.0


@dataclass(frozen=True)
class Suite:
    """Where everything goes and what it runs on. ``stop_at``: the call's end, on the clock ``time.monotonic``."""

    out: Path
    device: str
    upstream: Path | None
    results: Results
    stop_at: float

    def say(self, line: str) -> None:
        """To the log and to stderr."""
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, file=sys.stderr, flush=True)

    def left_s(self) -> float:
        """The time left for cases."""
        return self.stop_at - time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description="tests, benches and profiles of one GPU")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of results.json, log.txt and an image")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the most that this call takes; default: 9")
    parser.add_argument(
        "--after", type=Path, nargs="+", default=[], metavar="FILE", help="results.json of calls before"
    )
    parser.add_argument(
        "--only",
        metavar="CASE,..",
        help="these cases or parts, also where done; emu35 is all of emu35-*",
    )
    parser.add_argument("--upstream", type=Path, metavar="DIR", help="a LlamaGen clone: benches its own sampler too")
    parser.add_argument("--rehearse", action="store_true", help="small cases on a CPU: the machinery, no measurement")
    parser.add_argument("--dry-run", action="store_true", help="print the cases that would run, and their times")
    args = parser.parse_args(argv)
    try:
        if not 0 <= args.minutes < math.inf:
            raise FlasharError(f"--minutes is {args.minutes}; expected a number from 0")
        cases = choose(REHEARSAL if args.rehearse else CASES, args.only)
        results = Results(args.out.resolve(), args.after)
        cases = cases if args.only else to_do(cases, results.entries)
        left_s = 60 * args.minutes - RESERVE_S
        if args.dry_run:
            fitting, _ = split(cases, left_s)
            print("\n".join(f"{'run ' if case in fitting else 'skip'} {line_of(case)}" for case in cases))
            return 0
        refuse_bare_machine(needs_cuda=not args.rehearse)
        args.out.mkdir(parents=True, exist_ok=True)
        upstream = None if args.upstream is None else args.upstream.resolve()
        device = "cpu" if args.rehearse else "cuda"
        suite = Suite(args.out.resolve(), device, upstream, results, started + left_s)
        return 0 if run_cases(cases, suite) else 1
    except FlasharError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def choose(cases: Sequence[Case], text: str | None) -> list[Case]:
    """The cases of ``--only NAME,..`` in the order of the table; ``emu35`` is all of ``emu35-*``. Raises FlasharError
    for unknown ones.
    """
    words = text.split(",") if text is not None else ["*"]

    def chosen(case: Case, word: str) -> bool:
        return fnmatchcase(case.name, word) or case.name.startswith(f"{word}-")

    for word in words:
        if not any(chosen(case, word) for case in cases):
            raise FlasharError(f"--only names '{word}'; expected {', '.join(case.name for case in cases)}")
    return [case for case in cases if any(chosen(case, word) for word in words)]


def to_do(cases: Sequence[Case], entries: Mapping[str, Entry]) -> list[Case]:
    """The cases not done yet: failures and successes are not repeated, and what was stopped once comes last."""
    status = {case.name: entries.get(case.name, {}).get("status", SKIPPED) for case in cases}
    fresh = [case for case in cases if status[case.name] == SKIPPED]
    return fresh + [case for case in cases if status[case.name] == STOPPED]


def split(cases: Sequence[Case], left_s: float) -> tuple[list[Case], list[Case]]:
    """What a call runs and what it leaves to the next one, if each case takes its expected time."""
    fitting: list[Case] = []
    for case in cases:
        if case.expected_s <= left_s:
            fitting.append(case)
            left_s -= case.expected_s
    return fitting, [case for case in cases if case not in fitting]


def line_of(case: Case) -> str:
    """A case for people."""
    needs = f", with {case.needs}" if case.needs else ""
    return f"{case.expected_s:4d} s  {case.name} ({case.kind}{needs}): {case.arguments}"


def refuse_bare_machine(needs_cuda: bool) -> None:
    """Raises FlasharError where every case would fail because a package or the device is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise FlasharError(
            f"{sys.executable} has no {', '.join(missing)}; nothing was run (benchmarks/README.md, "
            '"On a bare GPU machine", says how to bring packages; PYTHON=... names another Python)'
        )
    import torch

    if needs_cuda and not torch.cuda.is_available():
        raise FlasharError(
            f"PyTorch {torch.__version__} of {sys.executable} sees no CUDA device; nothing was run "
            "(--rehearse runs small cases on a CPU)"
        )


def run_cases(cases: Sequence[Case], suite: Suite) -> bool:
    """Runs what fits into the time and says what does not; returns whether all that ran went well."""
    suite.say(f"== {datetime.now(UTC).isoformat(timespec='seconds')}, {suite.left_s():.0f} s for {len(cases)} cases")
    went_well = True
    for case in cases:
        reason = obstacle(case, suite)
        if reason is None:
            went_well &= run_case(case, suite)
            continue
        suite.say(f"skipped: {case.name}, {reason}")
        if case.name not in suite.results.entries:
            suite.results.put(case.name, {"kind": case.kind, "status": SKIPPED, "why": reason})
    report(suite)
    return went_well


def obstacle(case: Case, suite: Suite) -> str | None:
    """Why a case is not begun, or None."""
    if case.needs == "upstream" and suite.upstream is None:
        return "it needs --upstream DIR"
    if case.needs == "torchao" and importlib.util.find_spec("torchao") is None:
        return "torchao is not installed"
    left_s = suite.left_s()
    return None if case.expected_s <= left_s else f"it takes {case.expected_s} s and {max(0.0, left_s):.0f} s are left"


def run_case(case: Case, suite: Suite) -> bool:
    """Runs one case, at most as long as is left; returns whether it went well. Its entry holds what it had reported,
    also where it failed, or was stopped, alone or with the suite.
    """
    report_file = suite.results.running
    report_file.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        command = command_of(case, suite, images if case.kind == "images" else report_file)
        suite.say(f"$ {shlex.join(command)}")
        entry: Entry = {"kind": case.kind, "status": RUNNING, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        suite.results.put(case.name, {**entry, "command": command})
        started = time.monotonic()
        limit_s = min(suite.left_s(), PATIENCE * case.expected_s)
        status, why = STOPPED, "with the suite"
        try:
            code = run_logged(command, suite.out / "log.txt", limit_s)
            if code is not None:
                status, why = (OK, "") if code == 0 else (FAILED, f"with exit code {code}")
            else:
                why = f"after {limit_s:.0f} s"
        finally:
            seconds = time.monotonic() - started
            suite.say(f"{status} {why}".strip() + f": {case.name}, {seconds:.0f} of {case.expected_s} s")
            if (sheet := images / "contact-sheet.png").exists():
                shutil.copyfile(sheet, suite.out / f"{case.name}.png")
            entry |= {"status": status, "why": why, "seconds": round(seconds, 1), "expected_s": case.expected_s}
            suite.results.put(case.name, {**entry, "command": command, "report": read_json(report_file)})
            report_file.unlink(missing_ok=True)
        return status == OK


def command_of(case: Case, suite: Suite, out: Path) -> list[str]:
    """The command line of a case that leaves its report, or its folder of images, at ``out``."""
    arguments, files = shlex.split(case.arguments), ["--device", suite.device, "--out", str(out)]
    if case.kind == "tests":
        # Without what only its users need (datasets, say) a test file can't be collected; the others are run.
        return [sys.executable, "-m", "pytest", "-q", "-rs", "--continue-on-collection-errors", *arguments]
    if case.kind == "bench":
        clone = ["--upstream", str(suite.upstream)] if case.needs == "upstream" else []
        return [sys.executable, "-m", "flashar_cli", "bench", *arguments, *clone, *files]
    if case.kind == "images":
        return [sys.executable, "-m", "flashar_cli", "generate", *arguments, *files]
    script = {"profile": "profile_decode.py", "train": "train_rate.py"}[case.kind]
    return [sys.executable, str(ROOT / "benchmarks" / script), *arguments, *files]


def report(suite: Suite) -> None:
    """Logs every case and every target. It comes last, so that an error here costs no measurement."""
    from benchmarks.gpu.targets import summary

    entries = suite.results.entries
    lines = [f"{entry['status']:8s} {entry.get('seconds', 0):6.0f} s  {name}" for name, entry in entries.items()]
    suite.say("\n".join([*lines, "", summary(entries)]))


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)  # so that the running case ends too
    sys.exit(main())
