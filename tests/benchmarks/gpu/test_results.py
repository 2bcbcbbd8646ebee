"""results.json: calls put together, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.results import Results, merged, read_entries
from flashar_cli.errors import FlasharError


def test_a_later_entry_takes_the_place_of_an_earlier_one_unless_it_was_skipped() -> None:
    first = {"a": {"status": "ok"}, "b": {"status": "stopped"}, "c": {"status": "skipped"}}
    later = {"a": {"status": "skipped"}, "b": {"status": "ok"}, "c": {"status": "failed"}, "d": {"status": "skipped"}}
    assert {name: entry["status"] for name, entry in merged(first, later).items()} == {
        "a": "ok",
        "b": "ok",
        "c": "failed",
        "d": "skipped",
    }


def test_a_running_entry_was_cut_off_and_keeps_what_it_had_reported(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.put("case", {"kind": "bench", "status": "running"})
    assert read_entries(results.path)["case"]["report"] is None
    results.running.write_text("[1, 2]")
    entry = read_entries(results.path)["case"]
    assert (entry["status"], entry["report"]) == ("stopped", [1, 2])
    assert Results(tmp_path / "other", [results.path]).entries == {"case": entry}


@pytest.mark.parametrize("text", ("", "[]", '{"entries": 3}', "{", '{"entries": {"a": 3}}', '{"entries": {"a": {}}}'))
def test_a_file_that_is_no_results_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(FlasharError, match="could not be read") as caught:
        Results(tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_entries_are_rewritten_as_a_whole(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for name in ("a", "b", "a"):
        results.put(name, {"status": "ok"})
    assert list(json.loads(results.path.read_text())["entries"]) == ["b", "a"]
