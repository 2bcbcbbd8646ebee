"""What the GPU suite runs: parts, and in each its cases, first those that measure each target of targets.py once: all
that a case gets is what is left of its part's time.

Compiling takes longest, so it stands only where it is what is measured, and after the graphs. A batch that may not fit
into memory comes last in its case, which then fails, but keeps the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["tests", "bench", "profile", "pictures", "train"]


@dataclass(frozen=True)
class Case:
    """One command. ``arguments`` are those of what the kind stands for, without device and files; ``of_upstream``
    cases need the clone of the published sampler.
    """

    name: str
    kind: Kind
    arguments: str
    of_upstream: bool = False


@dataclass(frozen=True)
class Drawing:
    """A picture of the bench reports of some cases of a part, those that there are, as if they were one report."""

    file: str
    figure: Literal["speedup", "cost"]
    cases: tuple[str, ...]


TINY = "llamagen-tiny-flashar"
B, L, XL, XXL = (f"llamagen-{size} --random-weights" for size in ("b", "l", "xl", "xxl"))
EAGER, GRAPH, COMPILE, FLEX = (f"raster-{level},flashar-{level}" for level in ("eager", "graph", "compile", "flex"))

PARTS: dict[str, tuple[Case, ...]] = {
    "tests": (Case("tests", "tests", "-m gpu"),),
    "tiny": (
        Case("graph", "bench", f"{TINY} --arms {EAGER},{GRAPH} --batch-sizes 1,8,64 --repeats 10 --agreement"),
        Case("pictures", "pictures", f"{TINY} --num-images 40 --batch-size 20 --optimisation graph"),
        Case("compile", "bench", f"{TINY} --arms {GRAPH},{COMPILE} --batch-sizes 1,8,64 --repeats 10"),
        Case("flex", "bench", f"{TINY} --arms {COMPILE},{FLEX} --batch-sizes 1,8,64 --repeats 10"),
        Case("profile", "profile", f"{TINY} --arm flashar-graph"),
        Case("float32", "bench", f"{TINY} --arms {GRAPH},{COMPILE},{FLEX} --dtype float32 --repeats 3 --agreement"),
        Case("float16", "bench", f"{TINY} --arms {EAGER},{GRAPH} --dtype float16 --batch-sizes 1,64 --agreement"),
        Case("int8", "bench", f"{TINY} --arms {GRAPH},{COMPILE} --quantize int8 --repeats 3 --agreement"),
        Case("fp8", "bench", f"{TINY} --arms {GRAPH},{COMPILE} --quantize fp8 --repeats 3 --agreement"),
    ),
    "b": (
        Case("sweep", "bench", f"{B} --arms {GRAPH} --batch-sizes 1,4,16,64,256 --repeats 3"),
        Case("graph", "bench", f"{B} --arms {EAGER},{GRAPH}"),
        Case("compile", "bench", f"{B} --arms {GRAPH},{COMPILE}"),
        Case("upstream", "bench", f"{B} --arms upstream,{GRAPH} --repeats 3", of_upstream=True),
        Case("profile-graph", "profile", f"{B} --arm flashar-graph"),
        Case("profile-compile", "profile", f"{B} --arm flashar-compile"),
        Case("flex", "bench", f"{B} --arms {COMPILE},{FLEX}"),
        Case("float16", "bench", f"{B} --arms {GRAPH} --dtype float16"),
        Case("float32", "bench", f"{B} --arms {GRAPH} --dtype float32"),
    ),
    # Eager raster decoding at 512 takes most of a minute with its warm-up; upstream's sampler stands for it.
    "xl": (
        Case("512-graph", "bench", f"{XL} --res 512 --arms {GRAPH}"),
        Case("384-graph", "bench", f"{XL} --res 384 --arms {GRAPH}"),
        Case("512-upstream", "bench", f"{XL} --res 512 --arms upstream,flashar-graph --repeats 2", of_upstream=True),
        Case("512-profile-graph", "profile", f"{XL} --res 512 --arm flashar-graph"),
        Case("512-profile-flash", "profile", f"{XL} --res 512 --arm flashar-graph --sdpa flash"),
        Case("512-profile-cudnn", "profile", f"{XL} --res 512 --arm flashar-graph --sdpa cudnn"),
        Case("512-compile", "bench", f"{XL} --res 512 --arms {COMPILE}"),
        Case("384-compile", "bench", f"{XL} --res 384 --arms {COMPILE}"),
        Case("512-profile-compile", "profile", f"{XL} --res 512 --arm flashar-compile"),
        Case("512-forked", "bench", f"{XL} --res 512 --arms flashar-graph,flashar-forked"),
        Case("512-flex", "bench", f"{XL} --res 512 --arms flashar-eager,flashar-compile,flashar-flex"),
        Case("384-eager", "bench", f"{XL} --res 384 --arms {EAGER} --repeats 2"),
        Case("384-profile-raster", "profile", f"{XL} --res 384 --arm raster-graph"),
        Case("512-int8", "bench", f"{XL} --res 512 --arms flashar-graph,flashar-compile --quantize int8 --repeats 3"),
        Case("512-fp8", "bench", f"{XL} --res 512 --arms flashar-graph,flashar-compile --quantize fp8 --repeats 3"),
        Case("512-upstream-compile", "bench", f"{XL} --res 512 --arms upstream,flashar-compile --repeats 2", True),
    ),
    # A raster picture of 1024 pixels is 4096 forwards, some three million kernels to capture: it comes last.
    "sizes": (
        Case("256", "bench", f"{XL} --res 256 --arms {GRAPH} --repeats 3"),
        Case("384", "bench", f"{XL} --res 384 --arms {GRAPH} --repeats 3"),
        Case("512", "bench", f"{XL} --res 512 --arms {GRAPH} --repeats 3"),
        Case("1024-flashar", "bench", f"{XL} --res 1024 --arms flashar-graph --repeats 3"),
        Case("1024", "bench", f"{XL} --res 1024 --arms {GRAPH} --repeats 2"),
    ),
    "throughput": (
        Case("b-graph", "bench", f"{B} --res 256 --arms flashar-graph --batch-sizes 64,128,256,512 --repeats 3"),
        Case("l-graph", "bench", f"{L} --res 256 --arms flashar-graph --batch-sizes 64,128,256 --repeats 3"),
        Case("xl-graph", "bench", f"{XL} --res 256 --arms flashar-graph --batch-sizes 64,128,256 --repeats 3"),
        Case("xxl-graph", "bench", f"{XXL} --res 256 --arms flashar-graph --batch-sizes 64,128,256 --repeats 3"),
        Case("b-profile", "profile", f"{B} --res 256 --arm flashar-graph --batch-size 128"),
        Case("xl-profile", "profile", f"{XL} --res 256 --arm flashar-graph --batch-size 128"),
        Case("b-compile", "bench", f"{B} --res 256 --arms flashar-compile --batch-sizes 64,128,256 --repeats 3"),
        Case("l-compile", "bench", f"{L} --res 256 --arms flashar-compile --batch-sizes 64,128,256 --repeats 3"),
        Case("xl-compile", "bench", f"{XL} --res 256 --arms flashar-compile --batch-sizes 64,128,256 --repeats 3"),
        Case("xxl-compile", "bench", f"{XXL} --res 256 --arms flashar-compile --batch-sizes 64,128 --repeats 3"),
    ),
    "train": (Case("xl", "train", "--model llamagen-xl"),),
}

DRAWINGS: dict[str, tuple[Drawing, ...]] = {
    "tiny": (
        Drawing("tiny-speedup.png", "speedup", ("graph",)),
        Drawing("tiny-speedup-compile.png", "speedup", ("compile",)),
    ),
    "b": (Drawing("b-speedup.png", "speedup", ("sweep",)),),
    "xl": (Drawing("xl-cost.png", "cost", ("384-graph", "512-graph", "384-compile", "512-compile")),),
    "sizes": (Drawing("sizes-cost.png", "cost", ("256", "384", "512", "1024-flashar", "1024")),),
}
