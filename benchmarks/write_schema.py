"""Writes benchmarks/bench.schema.json from the report's own classes; a test holds the two equal.

python benchmarks/write_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

from flashar_cli.benchmarking.reports.document import report_schema

TARGET = Path(__file__).with_name("bench.schema.json")

if __name__ == "__main__":
    TARGET.write_text(json.dumps(report_schema(), indent=2) + "\n", encoding="utf-8")
