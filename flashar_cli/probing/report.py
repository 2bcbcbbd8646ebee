"""``probe.json``: what the probes found, and the branch layer that follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from flashar_cli.config import Config, RasterConfig, validated
from flashar_cli.errors import FlasharError
from flashar_cli.files.kinds import PNG, json_object
from flashar_cli.files.outputs import Output
from flashar_cli.files.writing import atomic_files
from flashar_cli.inputs.reading import read_json
from flashar_cli.reporting.curves import probe_figure
from flashar_cli.reporting.figures import to_png

REPORT_FILE, PLOT_FILE = "probe.json", "probe.png"
REPORT = json_object("a probe's report", "recommended_layer", "layers")


class ProbedLayer(Config):
    """Validation loss (nats per token) and top-1 accuracy before one block; None for a direction without cells."""

    layer: int = Field(ge=0)
    right_loss: float | None = Field(None, ge=0)
    lower_loss: float = Field(ge=0)
    right_top1: float | None = Field(None, ge=0, le=1)
    lower_top1: float | None = Field(None, ge=0, le=1)


class ProbeReport(Config):
    """The content of ``probe.json``."""

    model: str | None = None
    model_sha256: str
    recommended_layer: int = Field(ge=0)
    branch_depth: int | None = Field(None, ge=1)
    mask: str
    head: str
    num_train: int = Field(ge=0)
    num_validation: int | None = Field(None, ge=0)
    seed: int | None = None
    data_fingerprint: str | None = None
    layers: tuple[ProbedLayer, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_layers(self) -> ProbeReport:
        layers = [row.layer for row in self.layers]
        if len(set(layers)) < len(layers) or self.recommended_layer not in layers:
            raise ValueError(f"recommended_layer {self.recommended_layer} is not one of the different layers {layers}")
        return self

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self.model_dump(mode="json", exclude_unset=True)


def outputs(out: Path) -> list[Output]:
    """The files written into ``out``, which may be the folder of the model: its files have other names."""
    return [Output("--out", out / REPORT_FILE, REPORT), Output("--out", out / PLOT_FILE, PNG)]


def recommend(rows: Sequence[dict[str, float]], last_layer: int) -> int:
    """The index with the lowest loss of the lower neighbour, among 0..``last_layer``: there a branch adds no depth."""
    allowed = [row for row in rows if row["layer"] <= last_layer]
    if not allowed:
        raise FlasharError(
            f"no probed layer is among 0..{last_layer}, where a branch of this depth may start; probe those"
        )
    return int(min(allowed, key=lambda row: row["lower_loss"])["layer"])


def write_report(report: dict[str, Any], out: Path) -> None:
    """Writes ``probe.json`` and a plot of validation loss over index m for both neighbours; both files or none.

    Raises FlasharError for losses that are not finite.
    """
    wanted = "finite; train the probes with a lower --lr"
    document = validated(report, ProbeReport, "the result of the probes", wanted).document()
    with atomic_files(out / REPORT_FILE, out / PLOT_FILE) as (file, plot):
        file.write((json.dumps(document, indent=2) + "\n").encode())
        plot.write(to_png(probe_figure(document)))


def read_probe(path: Path) -> dict[str, Any]:
    """The content of a ``probe.json``. Raises FlasharError where it is not one."""
    where = f"--probe {path}"
    what = "a probe.json; write one with `flashar probe`"
    return validated(read_json(path, where), ProbeReport, where, what).document()


def read_recommendation(path: Path, config: RasterConfig, model_sha256: str, branch_depth: int) -> int:
    """The layer that a ``probe.json`` recommends for a branch of this depth. Raises FlasharError where the file is not
    one, or is of another model.
    """
    report = read_probe(path)
    if report["model_sha256"] != model_sha256:
        raise FlasharError(
            f"--probe {path} is of other weights ({report['model_sha256'][:12]}) "
            f"than this model's ({model_sha256[:12]})"
        )
    return recommend(report["layers"], config.backbone.num_layers - branch_depth)
