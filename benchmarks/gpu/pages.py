"""The bench reports of a results.json as pages with figures, after everything is measured:
python -m benchmarks.gpu.pages RESULTS.json DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.results import read_entries
from benchmarks.gpu.targets import bench_reports
from flashar_cli.benchmarking.reports.pages import write_page
from flashar_cli.errors import FlasharError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the benches of a results.json as pages with figures")
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("folder", type=Path, metavar="DIR", help="gets NAME.html for each bench")
    args = parser.parse_args(argv)
    try:
        reports, _ = bench_reports(read_entries(args.results))
        for name, report in reports.items():
            write_page(report, args.folder / f"{name}.html")
    except FlasharError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
