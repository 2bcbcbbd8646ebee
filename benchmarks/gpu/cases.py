"""What the GPU suite runs, the most important first: the tests, what the targets of targets.py need, profiles, then the
rest. A call runs as many as fit into its time, and the next call continues after them.

A target is first measured at the level that is expected to reach it, ``compile``; ``graph`` comes later. A batch that
may not fit into memory comes last in its case: if it fails the case, the others are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["tests", "bench", "profile", "images", "train"]
Need = Literal["upstream", "torchao"]


@dataclass(frozen=True)
class Case:
    """One command, of the kind ``kind`` with ``arguments``, without device and files. ``expected_s`` is an estimate on
    the long side, start of the process and compiling included: with less time left the case is not begun.
    """

    name: str
    kind: Kind
    expected_s: int
    arguments: str
    needs: Need | None = None


TINY = "llamagen-tiny-flashar"
B, L, XL, XXL = (f"llamagen-{size} --random-weights" for size in ("b", "l", "xl", "xxl"))
EMU = "emu3.5-image --random-weights --res 512"
INFINITY = "infinity-2b --random-weights"
SCALES_EAGER, SCALES_GRAPH, SCALES_COMPILE = (
    f"scale-{level},truncate-{level},fastvar-{level}" for level in ("eager", "graph", "compile")
)
EAGER, GRAPH, COMPILE, FLEX = (f"raster-{level},flashar-{level}" for level in ("eager", "graph", "compile", "flex"))
# Throughput is of tokens alone: pixels of hundreds of images would take most of the time and memory, and not count.
TOKENS = "--res 256 --repeats 3 --no-pixels"

CASES: tuple[Case, ...] = (
    Case("tests", "tests", 90, "-m gpu"),
    Case("xl-512-flashar", "bench", 120, f"{XL} --res 512 --arms flashar-compile"),
    Case("b-256", "bench", 100, f"{B} {TOKENS} --arms flashar-compile --batch-sizes 128,256,512"),
    Case("xl-512-graph", "bench", 90, f"{XL} --res 512 --arms {GRAPH}"),
    Case("train-xl", "train", 100, "--model llamagen-xl --attention flex,sdpa --compile true --micro-batch-sizes 32"),
    Case("emu35-compile", "bench", 150, f"{EMU} --arms flashar-compile --repeats 3"),
    Case("xl-512-compile", "bench", 150, f"{XL} --res 512 --arms {COMPILE}"),
    Case("next-scale-graph", "bench", 90, f"{INFINITY} --arms {SCALES_GRAPH}"),
    Case("l-256", "bench", 100, f"{L} {TOKENS} --arms flashar-compile --batch-sizes 128,256"),
    Case("xl-256", "bench", 110, f"{XL} {TOKENS} --arms flashar-compile --batch-sizes 64,128,256"),
    Case("xxl-256", "bench", 130, f"{XXL} {TOKENS} --arms flashar-compile --batch-sizes 64,128,256"),
    Case("xl-384-compile", "bench", 130, f"{XL} --arms {COMPILE}"),
    Case("xl-512-upstream", "bench", 70, f"{XL} --res 512 --arms upstream,flashar-graph --repeats 2", "upstream"),
    Case("xl-512-profile", "profile", 100, f"{XL} --res 512 --arm flashar-compile"),
    Case("agreement", "bench", 80, f"{TINY} --arms {EAGER},{GRAPH},{COMPILE} --batch-sizes 1,8 --agreement"),
    Case("images", "images", 30, f"{TINY} --num-images 40 --batch-size 20 --optimisation graph"),
    Case("emu35-graph", "bench", 60, f"{EMU} --arms flashar-graph --repeats 3"),
    # Where the time goes, and the next level in case the first one fails.
    Case("b-256-profile", "profile", 60, f"{B} --res 256 --arm flashar-compile --batch-size 256"),
    Case("emu35-profile", "profile", 150, f"{EMU} --arm flashar-compile"),
    Case("xl-512-profile-graph", "profile", 40, f"{XL} --res 512 --arm flashar-graph"),
    Case("b-256-graph", "bench", 60, f"{B} {TOKENS} --arms flashar-graph --batch-sizes 128,256,512"),
    Case("l-256-graph", "bench", 60, f"{L} {TOKENS} --arms flashar-graph --batch-sizes 128,256"),
    Case("xl-256-graph", "bench", 70, f"{XL} {TOKENS} --arms flashar-graph --batch-sizes 64,128,256"),
    Case("xxl-256-graph", "bench", 80, f"{XXL} {TOKENS} --arms flashar-graph --batch-sizes 64,128,256"),
    Case("xl-384-graph", "bench", 60, f"{XL} --arms {GRAPH}"),
    Case("b-256-pixels", "bench", 80, f"{B} --res 256 --arms flashar-graph --batch-sizes 64,128 --repeats 3"),
    Case("next-scale-2048", "bench", 120, f"{INFINITY} --res 2048 --arms fastvar-graph,scale-graph --repeats 2"),
    Case("next-scale-compile", "bench", 150, f"{INFINITY} --arms {SCALES_COMPILE}"),
    Case("next-scale-sizes", "bench", 120, f"{INFINITY} --res 512,768,1024 --arms {SCALES_EAGER} --repeats 3"),
    Case("next-scale-var", "bench", 80, "var-d30 --random-weights --arms scale-graph,fastvar-graph --batch-sizes 1,8"),
    Case("emu35-raster", "bench", 200, f"{EMU} --arms {GRAPH} --repeats 1"),
    Case("emu35-batches", "bench", 200, f"{EMU} --arms flashar-compile --batch-sizes 2,4,8 --repeats 2"),
    Case("train-xl-plain", "train", 120, "--model llamagen-xl --attention sdpa,flex --compile false"),
    Case("b-sweep", "bench", 100, f"{B} --arms {GRAPH} --batch-sizes 1,4,16,64,256 --repeats 3"),
    # A raster image of 1024 pixels is 4096 forwards, some four million kernels to capture.
    Case("xl-sizes", "bench", 100, f"{XL} --res 256,384,512,1024 --arms flashar-graph --repeats 3"),
    Case("xl-sizes-raster", "bench", 200, f"{XL} --res 256,1024 --arms {GRAPH} --repeats 2"),
    Case("xl-512-flex", "bench", 150, f"{XL} --res 512 --arms flashar-compile,flashar-flex"),
    Case("b-float16", "bench", 50, f"{B} --arms {GRAPH} --dtype float16"),
    Case("agreement-float32", "bench", 60, f"{TINY} --arms {GRAPH},{COMPILE},{FLEX} --dtype float32 --agreement"),
    Case("agreement-int8", "bench", 80, f"{TINY} --arms {GRAPH},{COMPILE} --quantize int8 --agreement", "torchao"),
    Case("agreement-fp8", "bench", 80, f"{TINY} --arms {GRAPH},{COMPILE} --quantize fp8 --agreement", "torchao"),
    Case("xl-512-int8", "bench", 150, f"{XL} --res 512 --arms flashar-compile --quantize int8", "torchao"),
)

# The same machinery on a CPU, in a minute: what can be tried before a GPU is at hand.
ON_A_CPU = "--attention sdpa --compile false --micro-batch-sizes 2 --steps 2 --dtype float32"
REHEARSAL: tuple[Case, ...] = (
    Case("tests", "tests", 20, "-m gpu tests/decoding tests/nn"),
    Case("bench", "bench", 20, f"{TINY} --arms {EAGER} --batch-sizes 1,4 --repeats 2 --no-pixels --agreement"),
    Case("sizes", "bench", 20, f"{TINY} --random-weights --arms {EAGER} --res 32,64 --repeats 2"),
    Case("next-scale", "bench", 20, "var-d16 --random-weights --layers 1 --res 64 --repeats 1"),
    Case("profile", "profile", 15, f"{TINY} --arm flashar-eager"),
    Case("images", "images", 15, f"{TINY} --num-images 4 --batch-size 2"),
    Case("train", "train", 20, f"--model llamagen-tiny {ON_A_CPU}"),
)
