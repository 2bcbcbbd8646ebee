#!/usr/bin/env bash
# The tests, benches and profiles of one GPU, as many as fit into nine minutes; the next call goes on behind them:
# benchmarks/run_gpu.sh OUT [--after RESULTS.json] [--minutes M] [--upstream DIR] [--only CASE,..] [--dry-run]
# flashar need not be installed. README.md says more, under "On a GPU".
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
exec env PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" -m benchmarks.gpu.suite "$@"
