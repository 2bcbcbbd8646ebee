"""The benches, profiles and tests of one GPU, in parts: python -m benchmarks.gpu.suite OUT [--only PART]

`run_gpu.sh` calls it. In OUT it leaves results.json, an entry for each case, as a whole after every case; log.txt,
appended to; and pictures. A case that fails or is stopped keeps no other from running. cases.py holds the cases.

  --merge FILE ..   adds the entries of other results.json files to that in OUT, and runs nothing
  --summary FILE    prints what was measured beside the targets, and runs nothing
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import DRAWINGS, PARTS, Case, Drawing
from flashar_cli.errors import FlasharError
from flashar_cli.files import atomic_file

ROOT = Path(__file__).resolve().parents[2]
PART_MINUTES = 8.0
# Kept back for the part's pictures; a case is not begun with less than this left.
RESERVE_S = 20.0
SHOWN_LINES = 30


class Results:
    """results.json: entries by ``part/case``, rewritten as a whole at each change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_entries(path) if path.exists() else {}

    def add(self, entries: dict[str, dict[str, Any]]) -> None:
        """Puts entries in, in the place of those of the same names."""
        self.entries |= entries
        with atomic_file(self.path) as file:
            file.write((json.dumps({"results_version": 1, "entries": self.entries}, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Suite:
    """Where everything goes and what it runs on. ``stop_at`` is the part's end, on the clock ``time.monotonic``."""

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
        """What is left for the part's cases."""
        return self.stop_at - time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="benches, profiles and tests of one GPU")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder of results.json, log.txt, pictures")
    parser.add_argument("--only", metavar="PART[/CASE],..", help=f"some of {', '.join(PARTS)}; default: all in turn")
    parser.add_argument("--minutes", type=float, default=PART_MINUTES, help="the most that a part takes; default: 8")
    parser.add_argument("--upstream", type=Path, metavar="DIR", help="a LlamaGen clone: benches its own sampler too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="FILE", help="results of other runs, to put into OUT's"
    )
    parser.add_argument("--summary", type=Path, metavar="FILE", help="a results.json, to hold against the targets")
    args = parser.parse_args(argv)
    try:
        if args.summary is not None:
            from benchmarks.gpu.targets import summary

            print(summary(read_entries(args.summary)))
            return 0
        if args.out is None:
            parser.error("OUT is missing")
        chosen = choose(args.only)
        args.out.mkdir(parents=True, exist_ok=True)
        results = Results(args.out / "results.json")
        if args.merge is not None:
            for path in args.merge:
                results.add(read_entries(path))
            return 0
        upstream = None if args.upstream is None else args.upstream.resolve()
        went_well = True
        for part, cases in chosen.items():
            stop_at = time.monotonic() + 60 * args.minutes - RESERVE_S
            went_well &= run_part(part, cases, Suite(args.out, args.device, upstream, results, stop_at))
        return 0 if went_well else 1
    except FlasharError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def choose(text: str | None) -> dict[str, tuple[Case, ...]]:
    """The cases of ``--only PART,PART/CASE,..`` by part. Raises FlasharError for what there is not."""
    if text is None:
        return dict(PARTS)
    chosen: dict[str, tuple[Case, ...]] = {}
    for word in text.split(","):
        part, _, name = word.partition("/")
        cases = tuple(case for case in PARTS.get(part, ()) if name in ("", case.name))
        if not cases:
            names = [each.name for each in PARTS.get(part, ())]
            raise FlasharError(f"--only names '{word}'; expected {', '.join(names or PARTS)}")
        chosen[part] = (*chosen.get(part, ()), *cases)
    return chosen


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a results.json. Raises FlasharError where it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise FlasharError(f"{path} could not be read as the results.json of this suite: {error!r}") from None
    if not isinstance(entries, dict):
        raise FlasharError(f"{path} has no entries by name; expected the results.json of this suite")
    return entries


def run_part(part: str, cases: Sequence[Case], suite: Suite) -> bool:
    """Runs cases of a part, then draws; returns whether all went well."""
    suite.say(f"\n== {part}, {datetime.now(UTC).isoformat(timespec='seconds')}")
    went_well = True
    for case in cases:
        if case.of_upstream and suite.upstream is None:
            suite.say(f"left out: {part}/{case.name} needs --upstream DIR")
        elif suite.left_s() <= 0:
            suite.say(f"left out: {part}/{case.name}, the part's time is up")
            went_well = False
        else:
            went_well &= run_case(part, case, suite)
    for drawing in DRAWINGS.get(part, ()):
        draw(part, drawing, suite)
    return went_well


def run_case(part: str, case: Case, suite: Suite) -> bool:
    """Runs one case in what is left of the time; returns whether it went well. Its entry holds what it had reported,
    also where it failed, or was stopped, alone or with the suite.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, pictures = Path(folder) / "report.json", Path(folder) / "pictures"
        command = command_of(case, suite, pictures if case.kind == "pictures" else report)
        suite.say(f"$ {shlex.join(command)}")
        started = time.monotonic()
        status = "stopped with the suite"
        try:
            status = run_logged(command, suite.out / "log.txt", suite.left_s())
        finally:
            seconds = time.monotonic() - started
            suite.say(f"{status}: {part}/{case.name}, {seconds:.0f} s")
            if (sheet := pictures / "contact-sheet.png").exists():
                shutil.copyfile(sheet, suite.out / f"{part}-{case.name}.png")
            entry = {
                "kind": case.kind,
                "status": status.split()[0],
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 1),
                "command": command,
                "report": read_json(report),
            }
            suite.results.add({f"{part}/{case.name}": entry})
        return status == "ok"


def command_of(case: Case, suite: Suite, out: Path) -> list[str]:
    """The command line of a case that leaves its report, or its folder of pictures, at ``out``."""
    arguments, files = shlex.split(case.arguments), ["--device", suite.device, "--out", str(out)]
    if case.kind == "tests":
        return [sys.executable, "-m", "pytest", "-q", *arguments]
    if case.kind == "bench":
        clone = ["--upstream", str(suite.upstream)] if case.of_upstream else []
        return [sys.executable, "-m", "flashar_cli", "bench", *arguments, *clone, *files]
    if case.kind == "pictures":
        return [sys.executable, "-m", "flashar_cli", "generate", *arguments, *files]
    script = {"profile": "profile_decode.py", "train": "train_rate.py"}[case.kind]
    return [sys.executable, str(ROOT / "benchmarks" / script), *arguments, *files]


def run_logged(command: Sequence[str], log: Path, limit_s: float) -> str:
    """Runs a command with its output in the log and its last lines on stderr: ``ok``, or how it ended."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as output:
        start = output.tell()
        # A group of its own, so that compilers that it started end with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    with open(log, "rb") as written:
        written.seek(start)
        lines = written.read().decode(errors="replace").splitlines()
    print("\n".join(lines[-SHOWN_LINES:]), file=sys.stderr, flush=True)
    if code is None:
        return f"stopped after {limit_s:.0f} s, when the part's time was up"
    return "ok" if code == 0 else f"failed with exit code {code}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and what it left running: asked first, so that it can give the device back, then made to."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def read_json(path: Path) -> Any:
    """What a case reported, or None where it did not come to that."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def draw(part: str, drawing: Drawing, suite: Suite) -> None:
    """Draws what there is of a drawing's reports; nothing, where there is nothing or no matplotlib."""
    from flashar_cli.benchmarking.reports.document import BatchReport, BenchReport
    from flashar_cli.benchmarking.reports.plots import cost_figure, speedup_figure
    from flashar_cli.reporting.figures import has_matplotlib, to_png

    entries = (suite.results.entries.get(f"{part}/{name}", {}) for name in drawing.cases)
    reports = [BenchReport.model_validate(entry["report"]) for entry in entries if entry.get("report")]
    if not reports or not has_matplotlib():
        return
    # A later case has more arms of the same grid and batch size.
    merged: dict[tuple[str, int, str | None], BatchReport] = {}
    for report in reports:
        merged |= {
            (batch.grid, batch.batch_size, batch.best_level or batch.arms[0].level): batch for batch in report.batches
        }
    arms = tuple(dict.fromkeys(arm for report in reports for arm in report.settings.arms))
    whole = reports[0].model_copy(
        update={
            "batches": tuple(merged.values()),
            "settings": reports[0].settings.model_copy(update={"arms": arms}),
        }
    )
    figure = speedup_figure(whole) if drawing.figure == "speedup" else cost_figure(whole)
    with atomic_file(suite.out / drawing.file) as file:
        file.write(to_png(figure))


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)  # so that the running case ends too
    sys.exit(main())
