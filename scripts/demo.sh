#!/usr/bin/env bash
# The whole tour on the embedded default, offline and on a CPU: look, probe, adapt, generate, measure.
# Everything goes to demo-output/, which is removed first. FLASHAR names the command to use.
set -euo pipefail
cd "$(dirname "$0")/.."

FLASHAR=${FLASHAR:-flashar}
OUT=demo-output
started=$SECONDS

step() {
    printf '\n== %s\n' "$1" >&2
    shift
    printf '$ flashar' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
    "$FLASHAR" "$@"
}

rm -rf "$OUT"
mkdir -p "$OUT"

step "What there is" ls
step "Where does the backbone know the lower neighbour?" \
    probe llamagen-tiny --data shapes --num-images 4096 --out "$OUT/probe"
step "Adapt it (briefly: this shows the way, the shipped model was trained longer)" \
    adapt llamagen-tiny --recipe llamagen-tiny-demo --probe "$OUT/probe/probe.json" --out "$OUT/adapted"
step "Images of the raster base, token by token" \
    generate llamagen-tiny --decoder raster --num-images 20 --out "$OUT/raster"
step "Images of the shipped adaptation, diagonal by diagonal" \
    generate llamagen-tiny-flashar --decoder flashar --num-images 20 --out "$OUT/flashar"
step "Images of prompts, by a model that reads text" \
    generate emu-tiny-flashar --prompt "a red star on a gray background" --prompt "blue ring on pink" \
    --samples-per-prompt 4 --out "$OUT/prompts"
step "Images of a model that predicts scale by scale" \
    generate var-tiny --num-images 20 --out "$OUT/maps"
step "How much faster is that here?" \
    bench llamagen-tiny-flashar --batch-sizes 1 --repeats 3 --out "$OUT/bench.json"

cat >&2 <<EOF

Done in $((SECONDS - started)) s.
  images   contact-sheet.png in $OUT/raster/, $OUT/flashar/, $OUT/prompts/ and $OUT/maps/
  plot       $OUT/probe/probe.png
  adapted    $OUT/adapted/, and how it went in $OUT/adapted/report.html
  speed      $OUT/bench.json
EOF
