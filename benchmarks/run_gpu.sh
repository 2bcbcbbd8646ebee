#!/usr/bin/env bash
# GPU tests, then benches that write JSON: benchmarks/run_gpu.sh OUT [--only tests|tiny|xl|train]
# Every part is stopped after eight minutes; a part that fails does not keep the others from running.
set -uo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: benchmarks/run_gpu.sh OUT [--only tests|tiny|xl|train]" >&2
    exit 2
}

[ $# -eq 1 ] || [ $# -eq 3 ] || usage
OUT=$1
ONLY=${3:-all}
[ $# -eq 1 ] || [ "$2" = --only ] || usage
case $ONLY in all | tests | tiny | xl | train) ;; *) usage ;; esac

PYTHON=${PYTHON:-python}
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: $PYTHON sees no CUDA device; nothing was run" >&2
    exit 2
fi
mkdir -p "$OUT"
failed=0
deadline=0

begin() { # NAME: whether this part is wanted; its time starts now
    [ "$ONLY" = all ] || [ "$ONLY" = "$1" ] || return 1
    echo "== $1" >&2
    deadline=$((SECONDS + 480))
}

run() { # LOG COMMAND...: within what is left of the part's time
    local log=$OUT/$1 left=$((deadline - SECONDS))
    shift
    if [ "$left" -le 0 ]; then
        echo "skipped, the part's time is up: $*" | tee -a "$log" >&2
        failed=1
        return
    fi
    echo "$ $*" | tee -a "$log" >&2
    timeout "$left" "$@" 2>&1 | tee -a "$log" >&2 || {
        echo "failed or stopped: $*" | tee -a "$log" >&2
        failed=1
    }
}

bench() { # NAME ARGUMENTS...
    local name=$1
    shift
    run "$name.log" "$PYTHON" -m flashar_cli bench "$@" --device cuda --out "$OUT/$name.json" --overwrite
}

if begin tests; then
    run tests.log "$PYTHON" -m pytest -q -m gpu
fi
if begin tiny; then
    bench tiny llamagen-tiny-flashar --batch-sizes 1,8,64 --repeats 10
fi
if begin xl; then
    bench xl-384 llamagen-xl --random-weights --batch-sizes 1,8 --repeats 3
    bench xl-512 llamagen-xl --random-weights --res 512 --batch-sizes 1 --repeats 3
fi
if begin train; then
    run train.log "$PYTHON" benchmarks/train_rate.py --model llamagen-xl --out "$OUT/train-xl.json"
fi
exit "$failed"
