#!/usr/bin/env bash
# Makes the embedded models from nothing: tokenizers, classifier, raster bases, probe, adaptations. Seeds are fixed.
# usage: scripts/train_tiny.sh WORK     hours on two CPU cores; each part that is done is skipped
# Afterwards copy WORK/llamagen-tiny, WORK/emu-tiny, their -flashar ones, WORK/var-tiny and WORK/shape-classifier into
# flashar_cli/assets/ and measure them with flashar eval, scripts/evaluate_tiny_emu.py and evaluate_tiny_var.py.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -eq 1 ] || { echo "usage: scripts/train_tiny.sh WORK" >&2; exit 2; }
WORK=$1
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$WORK"
# Large freed blocks stay with the process, as in the Makefile.
export MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_MAX_=0

[ -d "$WORK/tokenizer" ] || "$PYTHON" -m scripts.train_tiny_tokenizer "$WORK/tokenizer"
[ -d "$WORK/shape-classifier" ] || "$PYTHON" -m scripts.train_tiny_classifier "$WORK/tokenizer" "$WORK/shape-classifier"
[ -d "$WORK/llamagen-tiny" ] || "$PYTHON" -m scripts.train_tiny_gpt "$WORK/tokenizer" "$WORK/llamagen-tiny" --compile
[ -d "$WORK/probe" ] || "$PYTHON" -m flashar_cli probe "$WORK/llamagen-tiny" --data shapes:4096 --out "$WORK/probe"
[ -d "$WORK/llamagen-tiny-flashar" ] || "$PYTHON" -m flashar_cli adapt "$WORK/llamagen-tiny" --recipe llamagen-tiny \
    --probe "$WORK/probe/probe.json" --dtype bfloat16 --set engine.compile=true --out "$WORK/llamagen-tiny-flashar"

[ -d "$WORK/captioned-vq" ] || "$PYTHON" -m scripts.train_tiny_tokenizer "$WORK/captioned-vq" --captioned \
    --steps 1000 --merged-codes 128 --float32
[ -d "$WORK/ibq" ] || "$PYTHON" -m scripts.widen_tiny_tokenizer "$WORK/captioned-vq" "$WORK/ibq"
[ -d "$WORK/emu-random" ] || "$PYTHON" -m scripts.make_tiny_emu "$WORK/ibq" "$WORK/emu-random"
[ -d "$WORK/emu-tiny" ] || "$PYTHON" -m scripts.train_tiny_base "$WORK/emu-random" shapes:24512 "$WORK/emu-tiny" \
    --steps 2200 --anneal-steps 1000 --float32
[ -d "$WORK/emu-tiny-flashar" ] || "$PYTHON" -m flashar_cli adapt "$WORK/emu-tiny" --recipe emu-tiny \
    --out "$WORK/emu-tiny-flashar"

[ -d "$WORK/scale-tokenizer" ] || "$PYTHON" -m scripts.train_tiny_tokenizer "$WORK/scale-tokenizer" --scales --steps 1000 \
    --float32
[ -d "$WORK/var-tiny" ] || "$PYTHON" -m scripts.train_tiny_var "$WORK/scale-tokenizer" "$WORK/var-tiny" --compile
