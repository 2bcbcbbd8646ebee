"""The bench reports of a results.json as pages with figures, where nothing is measured any more:
python -m benchmarks.gpu.pages RESULTS.json DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.results import read_entries
from benchmarks.gpu.targets import bench_reports
from flashar_cli.benchmarking.reports.pages import write_page
from flashar_cli.errors import FlasharError


def write_pages(results: Path, folder: Path) -> None:
    """Writes NAME.html for each bench. Raises FlasharError for another file."""
    for name, report in bench_reports(read_entries(results)):
        write_page(report, folder / f"{name}.html")


if __name__ == "__main__":
    try:
        write_pages(Path(sys.argv[1]), Path(sys.argv[2]))
    except (FlasharError, IndexError) as error:
        sys.exit(f"error: {error}" if isinstance(error, FlasharError) else __doc__)
