"""Which numbers go into event files. The writer stands for TensorBoard's own, which need not be installed."""

from __future__ import annotations

from flashar_cli.adaptation import tensorboard
from flashar_cli.adaptation.tensorboard import EventFiles
from tests.adaptation.runs import run_records


class FakeWriter:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int, float]] = []
        self.closed = False

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, walltime: float) -> None:
        self.scalars.append((tag, scalar_value, global_step, walltime))

    def close(self) -> None:
        self.closed = True


def test_every_number_of_every_record(monkeypatch, tmp_path) -> None:
    writer = FakeWriter()
    monkeypatch.setattr(tensorboard, "open_writer", lambda directory: writer)
    records = run_records()
    events = EventFiles(tmp_path, records[:5])
    for record in records[5:]:
        events(record["kind"], {key: value for key, value in record.items() if key != "kind"})
    fused = [entry for entry in writer.scalars if entry[0] == "step/fused"]
    steps = [record for record in records if record["kind"] == "step"]
    assert fused == [("step/fused", r["fused"], r["step"], r["wall_time"]) for r in steps]
    tags = {entry[0] for entry in writer.scalars}
    assert {"validation/raster", "step/lr", "step/gate_mean", "step/images_per_s", "start/batch_size"} <= tags
    assert not any(tag.endswith(("/step", "/stage", "/wall_time", "/kind", "/stage_steps")) for tag in tags)
    events.close()
    assert writer.closed


def test_files_of_a_killed_process_are_replaced(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tensorboard, "open_writer", lambda directory: FakeWriter())
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "events.out.old").write_bytes(b"half")
    EventFiles(tmp_path / "events", [])
    assert not (tmp_path / "events" / "events.out.old").exists()


def test_without_the_package_nothing_is_written(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tensorboard, "has_tensorboard", lambda: False)
    events = EventFiles(tmp_path / "events", run_records())
    events.close()
    assert not (tmp_path / "events").exists()
