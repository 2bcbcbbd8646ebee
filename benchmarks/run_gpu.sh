#!/usr/bin/env bash
# GPU tests, benches and profiles: benchmarks/run_gpu.sh OUT [--only tests|tiny|b|xl|sizes|throughput|train]
# [--minutes M] [--upstream DIR]. Every part is stopped after eight minutes; a case that fails does not keep the others
# from running. gpu/suite.py does it, with the cases of gpu/cases.py.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python}

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: $PYTHON sees no CUDA device; nothing was run" >&2
    exit 2
fi
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m benchmarks.gpu.suite "$@"
