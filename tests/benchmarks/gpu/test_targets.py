"""Which numbers the summary of the GPU suite holds against which target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.targets import main, summary
from tests.benchmarking.reports.made_up import arm, report


def bench(
    model: str,
    grid: str,
    batch_size: int,
    arms: dict[str, float],
    floors: dict[str, float],
    gpu: str | None = "NVIDIA H200",
    **settings: Any,
) -> dict[str, Any]:
    """An entry with chosen seconds and floors, in layout 2; the slower an arm, the further from its floor."""
    pairs = [(name, f"raster-{name.partition('-')[2]}") for name in arms if name.startswith("flashar")]
    pairs += [(name, f"scale-{name.partition('-')[2]}") for name in arms if name.startswith("fastvar")]
    pairs += [(name, "upstream") for name in arms if name != "upstream"]
    document = report()
    plain = {key: value for key, value in document["settings"].items() if key != "optimisation"}
    batch = {
        "grid": grid,
        "batch_size": batch_size,
        "speedup": None,
        "speedup_with_token_decode": None,
        "speedups": [
            {
                "arm": fast,
                "over": slow,
                "token_generation": arms[slow] / arms[fast],
                "with_token_decode": None,
                "floor": floors.get(slow, 1.0) / floors.get(fast, 1.0),
            }
            for fast, slow in pairs
            if slow in arms
        ],
        "arms": [
            {
                **arm(63, seconds),
                "images_per_s": batch_size / seconds,
                "times_floor": 20 * seconds,
                "name": name,
                "decoder": name.partition("-")[0],
                "level": name.partition("-")[2] or None,
            }
            for name, seconds in arms.items()
        ],
    }
    document |= {
        "report_version": 2,
        "model": {**document["model"], "name": model, "grid": grid},
        "hardware": {**document["hardware"], "gpu": gpu},
        "settings": {**plain, "dtype": "bfloat16", "arms": list(arms), **settings},
        "batches": [batch],
    }
    return {"kind": "bench", "status": "ok", "report": document}


def training(share: float, gpu: str = "NVIDIA H200", dtype: str = "bfloat16") -> dict[str, Any]:
    """An entry of train_rate.py, whose other arm did not fit."""
    settings = {"attention": "flex", "compile": True}
    arms = [
        {**settings, "micro_batch_size": 32, "images_per_s": 200.0, "share_of_matmul": share},
        {**settings, "micro_batch_size": 64, "out_of_memory": True},
    ]
    hardware = {"gpu": gpu, "cpu": "a processor"}
    document = {"model": "llamagen-xl", "dtype": dtype, "hardware": hardware, "arms": arms}
    return {"kind": "train", "status": "ok", "report": document}


def verdicts(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[2:] for row in rows[2:]}


def test_nothing_measured_is_said() -> None:
    found = verdicts(summary({}))
    assert len(found) == 11 and all(row[:2] == ["-", "not measured"] for row in found.values())


def test_targets_are_met_or_missed() -> None:
    entries = {
        # Graphs are faster: they are the best level, though compiled decoding has the better ratio.
        "xl/512-graph": bench(
            "llamagen-xl", "32x32", 1, {"raster-graph": 0.8, "flashar-graph": 0.05}, {"raster-graph": 16.0}
        ),
        "xl/512-compile": bench(
            "llamagen-xl", "32x32", 1, {"raster-compile": 1.8, "flashar-compile": 0.06}, {"raster-compile": 16.0}
        ),
        "xl/512-upstream": bench("llamagen-xl", "32x32", 1, {"upstream": 1.0, "flashar-graph": 0.05}, {}),
        "throughput/b": bench("llamagen-b", "16x16", 256, {"flashar-graph": 0.1}, {}),
        "throughput/b-small": bench("llamagen-b", "16x16", 64, {"flashar-graph": 0.1}, {}),
        "xl/profile": {
            "kind": "profile",
            "status": "ok",
            "report": {
                "model": "llamagen-xl",
                "grid": "32x32",
                "arm": "flashar-graph",
                "batch_size": 1,
                "token_generation_s": 0.05,
                "floor_s": 0.025,
                "idle_share_unprofiled": 0.2,
                "kernels": [{"name": "gemv", "calls": 3, "total_s": 0.02, "share": 0.5}],
            },
        },
        "throughput/xxl": {"kind": "bench", "status": "stopped", "why": "after 300 s", "report": None},
        "train": training(0.55),
        "train-float32": training(0.9, dtype="float32"),
        "next-scale": bench("infinity-2b", "64x64", 1, {"scale-graph": 0.6, "fastvar-graph": 0.2}, {}),
        "next-scale-compile": bench("infinity-2b", "64x64", 1, {"scale-compile": 0.2, "fastvar-compile": 0.1}, {}),
        "34b": bench("emu3.5-image", "32x32", 1, {"flashar-graph": 1.3}, {}),
    }
    text = summary(entries)
    found = verdicts(text)
    assert found["XL 512, speed-up / floors"][:2] == ["1", "met"]
    where = "flashar-graph (1.00 times its floor) over raster-graph (16.00 times its floor): 16.00x, floors 16.00x"
    assert found["XL 512, speed-up / floors"][2] == where, "a slow raster shows"
    assert found["XL 512, token generation"][:2] == ["50 ms", "met"]
    assert found["XL 512, over upstream's sampler"][:2] == ["20 x", "missed"]
    assert found["B 256, best batch"][:2] == ["2560 img/s", "met"]
    assert "batch 256" in found["B 256, best batch"][2]
    assert found["B 256, best batch"][2].endswith("; 1280 with pixels"), "0.1 s of tokens and 0.1 s of pixels"
    assert found["34 B 512, token generation"][:2] == ["1300 ms", "missed"]
    where = "fastvar-graph over scale-graph 3.00x"
    assert found["Infinity-2B 1024, FastVAR over all scales"] == ["3 x", "met", where]
    assert found["XL 384, training / product"] == ["0.55", "met", "flex, compiled, 32 images, 200 a second"]
    assert "left out: train-float32, in float32" in text
    assert found["L 256, best batch"][1] == "not measured"
    assert found["XL 384, speed-up / floors"][1] == "not measured"
    assert "not as it should be: throughput/xxl: stopped after 300 s" in text
    profile = "xl/profile: llamagen-xl 32x32 flashar-graph at batch 1: 50.0 ms, floor 25.0, idle 20%; 50% gemv"
    assert profile in text.splitlines()


@pytest.mark.parametrize(
    ("other", "why"),
    (
        ({"dtype": "float32"}, "in float32"),
        ({"quantize": "int8"}, "int8 weights"),
        ({"cfg_scale": 1.0}, "without guidance"),
        ({"gpu": "NVIDIA A100-SXM4-80GB"}, "measured on NVIDIA A100-SXM4-80GB"),
        ({"gpu": "NVIDIA GH200 480GB"}, "measured on NVIDIA GH200 480GB"),
        ({"gpu": None}, "measured on a processor"),
    ),
)
def test_other_measurements_do_not_count_and_are_named(other: dict[str, Any], why: str) -> None:
    slow, fast = ({"flashar-graph": seconds, "upstream": 1.0} for seconds in (0.1, 0.01))
    entries = {"plain": bench("llamagen-xl", "32x32", 1, slow, {})}
    entries["other"] = bench("llamagen-xl", "32x32", 1, fast, {}, **other)
    text = summary(entries)
    found = verdicts(text)
    assert found["XL 512, token generation"][:2] == ["100 ms", "missed"]
    assert found["XL 512, over upstream's sampler"][:2] == ["10 x", "missed"]
    assert f"left out: other, {why}" in text.splitlines()
    assert "left out: plain" not in text


def test_throughput_without_pixels_says_so() -> None:
    entry = bench("llamagen-b", "16x16", 256, {"flashar-graph": 0.1}, {}, with_pixels=False)
    entry["report"]["batches"][0]["arms"][0]["token_decode_s"] = None
    text = summary({"b": entry})
    assert verdicts(text)["B 256, best batch"][2].endswith("; pixels not measured")


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"entries": {"b": {"kind": "bench", "status": "ok", "report": {"date": "today"}}}}))
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "not measured" in out and "left out: b, not a report of flashar bench" in out
    assert main([str(tmp_path / "absent.json")]) == 2
    assert "absent.json could not be read" in capsys.readouterr().err
