"""`flashar bench` as typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flashar_cli.benchmarking import run
from flashar_cli.benchmarking.reports.document import read_report
from flashar_cli.cli.bench import duration, parse_batch_sizes
from flashar_cli.errors import FlasharError
from flashar_cli.tokenizers.vq import VQTokenizer
from tests.benchmarking.published.clones import write_clone

QUICK = ("--repeats", 1, "--device", "cpu")


def test_report_table_and_exit_code(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "bench.json"
    done = run_cli("bench", write_tiny_checkpoint(), "--batch-sizes", "1,2", "--out", out, *QUICK)
    assert done.code == 0, done.err
    assert done.out == ""
    assert "expected time" in done.err and "speed-up" in done.err
    assert done.err.index("expected time") < done.err.index("speed-up")
    report = read_report(out)
    assert [batch.batch_size for batch in report.batches] == [1, 2]
    assert report.settings.cfg_scale == 1.5, "the checkpoint's own guidance"
    assert report.settings.top_k == 8
    assert sorted(path.name for path in out.parent.iterdir()) == ["bench.json"]


def test_json_is_all_of_stdout(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    done = run_cli("bench", "--base", write_tiny_checkpoint(branch=False), "--json", "--cfg-scale", 1, *QUICK)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["batches"][0]["speedup"] > 0
    assert document["settings"]["cfg_scale"] == 1.0
    assert document["model"]["branch_added"]
    assert "fresh one" in done.err


def test_without_pixels_none_are_made_and_the_report_says_so(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("tokens were turned into pixels")

    monkeypatch.setattr(VQTokenizer, "decode_unchecked", fail)
    out, page = tmp_path / "bench.json", tmp_path / "bench.md"
    files = ("--out", out, "--report", page)
    done = run_cli("bench", write_tiny_checkpoint(), "--no-pixels", "--batch-sizes", "1,2", *files, *QUICK)
    assert done.code == 0, done.err
    report = read_report(out)
    assert report.settings.with_pixels is False
    assert all(arm.token_decode_s is None for batch in report.batches for arm in batch.arms)
    assert all("tokens alone: no pixels" in " ".join(text.split()) for text in (done.err, page.read_text()))


def test_agreement_of_quantised_weights(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    page = tmp_path / "bench.md"
    options = ("--agreement", "--quantize", "int8", "--dtype", "bfloat16", "--report", page, "--json")
    done = run_cli("bench", write_tiny_checkpoint(), *options, *QUICK)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert (document["settings"]["dtype"], document["settings"]["quantize"]) == ("bfloat16", "int8")
    assert [found["arm"] for found in document["agreements"]] == ["raster-eager", "flashar-eager"]
    assert all(found["mean_abs_difference"] > 0 for found in document["agreements"])
    assert done.err.index("one image of each decoder in float32") < done.err.index("expected time")
    assert done.err.index("expected time") < done.err.index("same argmax") < done.err.index("img/s   x floor")
    assert "bfloat16 with int8 weights" in done.err
    text = page.read_text()
    assert "bfloat16 with int8 weights" in text and "## Agreement with float32" in text
    assert "| quantize | int8 |" in text


def test_without_agreement_nothing_is_compared(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    done = run_cli("bench", write_tiny_checkpoint(), "--json", *QUICK)
    document = json.loads(done.out)
    assert document["agreements"] == [] and document["settings"]["quantize"] is None
    assert "float32 weights" not in done.err and "of each decoder in float32" not in done.err


def test_bench_without_torchao_is_one_line(
    run_cli: Callable,
    write_tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    out = tmp_path / "bench.json"
    done = run_cli("bench", write_tiny_checkpoint(), "--quantize", "fp8", "--out", out, *QUICK)
    assert done.code == 2 and "pip install flashar[quant]" in done.err and done.err.count("\n") == 1
    assert not out.exists()


def test_existing_report_is_kept(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    out.write_text("mine")
    model = write_tiny_checkpoint()
    refused = run_cli("bench", model, "--out", out, *QUICK)
    assert refused.code == 2
    assert run_cli("bench", model, "--out", out, "--overwrite", *QUICK).code == 2  # it is no report
    assert out.read_text() == "mine"
    out.write_text('{"report_version": 2, "batches": []}')
    assert run_cli("bench", model, "--out", out, *QUICK).code == 2
    assert run_cli("bench", model, "--out", out, "--overwrite", *QUICK).code == 0
    assert read_report(out)


def test_res_on_random_weights(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    model = write_tiny_checkpoint()
    done = run_cli("bench", model, "--res", 32, "--random-weights", "--json", *QUICK)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["model"]["grid"] == "8x8"
    assert document["model"]["weights"] == "random weights"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-sizes", "1,x"), "a whole number from 1"),
        (("--batch-sizes", "0"), "a whole number from 1"),
        (("--batch-sizes", "1,1"), "each size once"),
        (("--cfg-scale", "-1"), "--cfg-scale"),
        (("--cfg-scale", "nan"), "--cfg-scale"),
        (("--res", "32"), "--random-weights"),
        (("--res", "33"), "multiple of 4"),
        (("--device", "tpu"), "--device"),
        (("--out", "."), "is a directory"),
        (("--res", "16,16", "--random-weights"), "each side once"),
        (("--res", "16,32"), "leave --res out, or bench the speed of that grid"),
        (("--res", "x"), "a whole number from 1"),
        (("--arms", "raster"), "expected upstream or DECODER-LEVEL"),
        (("--arms", "upstream"), "--upstream DIR"),
        (("--upstream", "."), "has no autoregressive"),
        (("--report", "a.pdf"), ".md or .html"),
        (("--plot", "a.svg"), ".png"),
        (("--quantize", "int8", "--dtype", "float16"), "int8 overflows float16"),
        (("--quantize", "int8", "--upstream", "."), "bench them apart"),
    ],
)
def test_bad_input_is_one_line(
    run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], arguments: tuple[str, ...], message: str
) -> None:
    done = run_cli("bench", write_tiny_checkpoint(), *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""
    assert len(done.err.strip().splitlines()) == 1, done.err


def test_everything_at_once(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Roofline first, then the arms on two grids; the reports and the plot are there afterwards."""
    pytest.importorskip("matplotlib")
    outputs = {name: tmp_path / name for name in ("bench.json", "bench.html", "speedup.png")}
    done = run_cli(
        *("bench", write_tiny_checkpoint(), "--random-weights", "--res", "8,16", "--batch-sizes", "1,2", *QUICK),
        *("--out", outputs["bench.json"], "--report", outputs["bench.html"], "--plot", outputs["speedup.png"]),
    )
    assert done.code == 0, done.err
    assert done.err.index("roofline") < done.err.index("expected time") < done.err.index("x floor")
    batches = read_report(outputs["bench.json"]).batches
    assert [(batch.grid, batch.batch_size) for batch in batches] == [("2x2", 1), ("2x2", 2), ("4x4", 1), ("4x4", 2)]
    assert "Cost over the resolution" in outputs["bench.html"].read_text()
    assert outputs["speedup.png"].stat().st_size > 1000
    refused = run_cli("bench", write_tiny_checkpoint("other"), "--report", outputs["bench.html"], *QUICK)
    assert refused.code == 2 and "bench.html" in refused.err


def test_sweep(run_cli: Callable, write_tiny_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashar_cli.benchmarking import plan

    monkeypatch.setattr(plan, "free_bytes", lambda device: 0)
    done = run_cli("bench", write_tiny_checkpoint(), "--batch-sizes", "sweep", "--json", *QUICK)
    assert done.code == 0, done.err
    assert "batch 2" in json.loads(done.out)["sweep_end"]


def test_unknown_model(run_cli: Callable) -> None:
    done = run_cli("bench", "no-such-model")
    assert done.code == 2
    assert "no-such-model" in done.err


def test_batch_sizes() -> None:
    assert parse_batch_sizes("1, 8,32") == (1, 8, 32)
    for text in ("", ",", "1,,2", "-1", "1.5", "²"):
        with pytest.raises(FlasharError):
            parse_batch_sizes(text)


def test_duration() -> None:
    assert (duration(0.2), duration(42.4), duration(150)) == ("1 s", "42 s", "2 min")


def test_files_of_a_bench_are_checked_before_it(run_cli: Callable, tmp_path: Path) -> None:
    same = str(tmp_path / "same.md")
    done = run_cli("bench", "llamagen-tiny-flashar", "--out", same, "--report", same)
    assert done.code == 2 and "is the same as --out" in done.err
    taken = tmp_path / "taken.html"
    taken.write_text("mine")
    done = run_cli("bench", "llamagen-tiny-flashar", "--report", str(taken))
    assert done.code == 2 and f"--report {taken} exists" in done.err
    assert taken.read_text() == "mine"


def test_agreement_of_no_arm_of_ours_is_refused(run_cli: Callable, tmp_path: Path) -> None:
    write_clone(tmp_path)
    done = run_cli("bench", "llamagen-tiny", "--upstream", str(tmp_path), "--arms", "upstream", "--agreement")
    assert done.code == 2 and "--agreement compares our own arms" in done.err


def test_a_size_that_cannot_fit_is_refused(run_cli: Callable, write_tiny_checkpoint: Callable[..., Path]) -> None:
    done = run_cli("bench", write_tiny_checkpoint(), "--batch-sizes", "1,1000000", *QUICK)
    assert done.code == 2 and "--batch-sizes has 1000000, which needs about" in done.err


def test_what_was_measured_before_memory_ended_is_kept(
    run_cli: Callable, write_tiny_checkpoint: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run._bench_batch

    def small_memory(subject, plan, grid, size, *rest):  # type: ignore[no-untyped-def]
        if size > 1:
            raise torch.OutOfMemoryError("full")
        return real(subject, plan, grid, size, *rest)

    monkeypatch.setattr(run, "_bench_batch", small_memory)
    out = tmp_path / "bench.json"
    done = run_cli("bench", write_tiny_checkpoint(), "--batch-sizes", "1,2", "--out", str(out), *QUICK)
    assert done.code == 2 and "out of memory at batch 2" in done.err
    report = read_report(out)
    assert [batch.batch_size for batch in report.batches] == [1]
    assert report.sweep_end is not None and "batch 2" in report.sweep_end
