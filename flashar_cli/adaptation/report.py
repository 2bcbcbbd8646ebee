"""The report of an adaptation: one HTML file with its results and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashar_cli.adaptation import gates
from flashar_cli.adaptation.records import (
    adapted_loss,
    flops_per_s,
    flops_text,
    peak_share,
    training_s,
    validation_columns,
)
from flashar_cli.config import RasterConfig
from flashar_cli.decoding.decoders import choose_decoder
from flashar_cli.machine.environment import Hardware, Software
from flashar_cli.reporting import curves, html
from flashar_cli.reporting.figures import has_matplotlib, to_svg
from flashar_cli.training.metrics import Record

MOST_PIXELS = 192
SECTIONS = ("Validation", "Curves", "Probe", "Gate map", "Samples", "Settings")


@dataclass(frozen=True)
class AdaptReport:
    """The content of the report. ``config`` is that of the adapted model; ``probe`` the content of a ``probe.json``;
    ``samples`` are uint8 [B, h, w, 3] by the base's raster decoder and by the adapted model's own, named
    ``sample_names`` [B]; ``gates_HW`` is None where there is no gate.
    """

    base_name: str
    base_sha256: str
    config: RasterConfig
    recipe: dict[str, Any]
    seed: int
    dtype: str
    data_fingerprint: str
    num_train: int
    num_validation: int
    hardware: Hardware
    software: Software
    records: list[Record]
    gates_HW: NDArray[np.float64] | None
    probe: dict[str, Any] | None = None
    samples: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
    sample_names: Sequence[str] = ()

    @property
    def validations(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "validation"]

    @property
    def steps(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "step"]


def render(report: AdaptReport) -> str:
    """The HTML document."""
    grid, decoder = report.config.order_grid, choose_decoder(report.config)
    way = "diagonal decoding" if report.config.branch is not None else "block diffusion"
    subtitle = (
        f"{_added(report.config)} {grid} tokens: {decoder.num_forwards(report.config, grid)} forwards an image instead "
        f"of {grid.num_cells}."
    )
    title = f"{report.base_name}, adapted to {way}"
    return html.page(title, subtitle, [html.facts(_headline(report)), *_sections(report)])


def _added(config: RasterConfig) -> str:
    """What the base was given, in a sentence."""
    if config.branch is None:
        assert config.diffusion is not None
        return f"Blocks of {config.diffusion.block} tokens are drawn by diffusion."
    branch, blocks = config.branch, "block" if config.branch.depth == 1 else "blocks"
    return (
        f"Branch of {branch.depth} {blocks} from before block {branch.layer} of {config.backbone.num_layers}, "
        f"gate “{branch.gate}”."
    )


def _sections(report: AdaptReport) -> list[str]:
    found = {"Validation": _validation(report), "Settings": _settings(report)}
    if has_matplotlib():
        found["Curves"] = _curves(report.records)
        if report.gates_HW is not None:
            found["Gate map"] = _gate_map(report.gates_HW)
        if report.probe is not None:
            found["Probe"] = _probe(report.probe)
    else:
        found["Curves"] = html.paragraph("There are no figures, as the matplotlib package is not installed.")
    if report.samples is not None:
        found["Samples"] = _samples(report)
    return [html.section(name, found[name]) for name in SECTIONS if name in found]


def _headline(report: AdaptReport) -> list[tuple[str, str, str]]:
    first, last = report.validations[0], report.validations[-1]
    steps = report.steps
    start = next(record for record in reversed(report.records) if record["kind"] == "start")
    batch_size = start["batch_size"]
    memory = max(record["peak_memory_bytes"] for record in report.records)
    count = len(curves.resumptions(report.records))
    pauses = f"resumed {count} times" if count > 1 else "resumed once" if count else "without a pause"
    rate = f"{flops_text(flops_per_s(start, steps[-1]))}, {peak_share(start, steps[-1]):.0%} of the measured peak"
    found = adapted_loss(last)
    assert found is not None, "checked when the run began"
    name, loss = found
    facts = [
        ("raster loss before", f"{first['raster']:.3f}", "nats per token, of the base"),
        (f"{name} loss after", f"{loss:.3f}", _beside(name, loss, first["raster"])),
        ("raster loss after", f"{last['raster']:.3f}", f"{last['raster'] - first['raster']:+.3f} to before"),
        ("steps", f"{len(steps):,}", f"of {batch_size:,} images"),
        ("training images", f"{report.num_train:,}", f"{len(steps) * batch_size / report.num_train:.2f} epochs"),
        ("time", _duration(training_s(report.records)), pauses),
        ("speed", f"{steps[-1]['images_per_s']:.4g}/s", f"images; {rate}"),
        ("peak memory", f"{memory / 2**30:.2f} GiB", "of the GPU" if report.hardware.gpu else "of the process"),
    ]
    if "gate_mean" in last:
        facts.insert(3, ("gate after", f"{last['gate_mean']:.3f}", f"± {last['gate_std']:.3f}; 1 = horizontal"))
    return facts


def _beside(name: str, loss: float, raster: float) -> str:
    """What is said of a loss beside that of the base; that of block diffusion is of fewer cells, given others."""
    return f"{loss - raster:+.3f} to raster before" if name == "fused" else "nats per unknown token"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _validation(report: AdaptReport) -> str:
    columns = validation_columns(report.validations)
    header = ["after", *(name.replace("_", " ") for name in columns)]
    rows = [
        [f"{v['stage']}, step {v['step']:,}", *(f"{v[key]:.4f}" if key in v else "–" for key in columns)]
        for v in report.validations
    ]
    table = html.number_table(header, rows)
    return table + html.paragraph(f"Nats per token on {report.num_validation:,} images that are not trained on.")


def _curves(records: Sequence[Record]) -> str:
    has_gates = any("gate_mean" in record for record in records if record["kind"] == "step")
    drawn = [
        ("loss", curves.loss_figure, "Losses", "Faint lines: training. Dots: validation."),
        ("gate", curves.gate_figure, "Gate", "Training, over the cells that both heads predict.")
        if has_gates
        else None,
        (
            "rate",
            curves.learning_rate_figure,
            "Learning rate",
            "Of what was added; that of the backbone is this times its factor.",
        ),
        ("speed", curves.speed_figure, "Speed", "Mean since the last validation or save."),
    ]
    return html.columns(
        *(
            html.figure(to_svg(draw(records), name, title), title, caption)
            for name, draw, title, caption in filter(None, drawn)
        ),
        broad=True,
    )


def _gate_map(gates_HW: NDArray[np.float64]) -> str:
    figures = [("gate-map", gates.gate_figure(gates_HW), "Mean gate of each cell", gates.CAPTION)]
    inner = gates_HW[1:, 1:]
    if inner.size:
        caption = (
            f"The cells that both heads predict, on a scale of their own: {inner.min():.3f} to {inner.max():.3f}, "
            f"mean {inner.mean():.3f}."
        )
        figures.append(("gate-map-inner", gates.inner_figure(gates_HW), "Where both heads predict", caption))
    return html.columns(
        *(html.figure(to_svg(drawn, name, title), title, caption) for name, drawn, title, caption in figures),
        broad=True,
    )


def _probe(probe: dict[str, Any]) -> str:
    caption = (
        f"Linear probes on the frozen base, {probe['num_train']:,} images, {probe['mask']} mask, {probe['head']} "
        "head. The branch begins where they predict the lower neighbour best."
    )
    return html.figure(
        to_svg(curves.probe_figure(probe), "probe", "probe losses"), "Probe losses", caption, narrow=True
    )


def _samples(report: AdaptReport) -> str:
    assert report.samples is not None
    raster, adapted = report.samples
    side = "diagonal decoder" if report.config.branch is not None else f"decoder {choose_decoder(report.config).name}"
    settings = ", ".join(f"{name} {_numbers(value)}" for name, value in report.config.generation.model_dump().items())
    text = (
        f"Left: the base before adaptation, raster decoder. Right: the adapted model, {side}. Same subjects, "
        f"same random numbers (seed {report.seed}), same settings ({settings})."
    )
    sides = ("raster decoder of the base", side)
    return html.paragraph(text) + html.image_groups((raster, adapted), report.sample_names, sides, MOST_PIXELS)


def _settings(report: AdaptReport) -> str:
    # The recipe may leave the layer to the probe; the config has the actual one.
    added = {"branch": report.config.branch, "diffusion": report.config.diffusion}
    recipe = {key: value for key, value in report.recipe.items() if key not in added}
    recipe |= {key: value.model_dump() for key, value in added.items() if value is not None}
    run = [(key, _value(value)) for key, value in recipe.items() if not isinstance(value, dict)]
    origin = [
        ("base", report.base_name),
        ("base SHA-256", report.base_sha256),
        ("data fingerprint", report.data_fingerprint),
        ("images", f"{report.num_train:,} to train on, {report.num_validation:,} to validate on"),
        ("seed", str(report.seed)),
        ("dtype", report.dtype),
    ]
    machine = [
        ("processor", f"{report.hardware.cpu}, {report.hardware.num_cpu_cores} cores"),
        ("GPU", report.hardware.gpu or "none"),
        *((name, _value(value)) for name, value in report.software.model_dump().items()),
    ]
    stages = [name for name in recipe if name.startswith("stage") and isinstance(recipe[name], dict)]
    rows = [[key, *(_value(recipe[stage][key]) for stage in stages)] for key in recipe[stages[0]]]
    others = [name for name, value in recipe.items() if isinstance(value, dict) and name not in stages]
    return html.columns(
        html.value_table("Origin", origin),
        html.value_table("Machine and versions", machine),
        "<div><h3>Stages</h3>" + html.number_table(["", *stages], rows) + "</div>",
        *(html.value_table(name, [(k, _value(v)) for k, v in recipe[name].items()]) for name in others),
        html.value_table("run", run),
    )


def _numbers(value: float | str | tuple[float, ...]) -> str:
    """``0.5``, or ``0:1`` of a range."""
    if isinstance(value, str):
        return value
    return ":".join(f"{part:g}" for part in (value if isinstance(value, tuple) else (value,)))


def _value(value: Any) -> str:
    return "–" if value is None else str(value)
