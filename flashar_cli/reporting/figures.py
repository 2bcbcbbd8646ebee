"""matplotlib figures without a screen and without global state: as PNG, and as SVG for inside a page."""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flashar_cli.errors import FlasharError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Stands for the text colour of the page that an SVG is in; in a PNG it is nearly black.
INK = "#010203"
# The same meaning has the same colour in every figure; all are readable on white and on near-black.
COLOURS = {
    "horizontal": "#3f7fd0",
    "vertical": "#d0603f",
    "fused": "#2e9e73",
    "diffusion": "#c0912e",
    "raster": "#9a78d0",
    "other": "#8a8a8a",
}
SVG_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "flashar"}


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raises FlasharError where figures can't be drawn."""
    if not has_matplotlib():
        raise FlasharError("the plot needs the matplotlib package; install it")


def new_figure(width: float = 6.0, height: float = 3.2) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one pair of axes, in ``INK``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def whole_numbers(*all_axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis in all_axis:
        axis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 2.5, 5, 10]))


def add_legend(axes: Axes, **settings: Any) -> None:
    """A legend without a frame, in ``INK``; none where nothing has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, **settings)


def to_png(figure: Figure, settings: dict[str, str] | None = None) -> bytes:
    """PNG on white, 150 dots an inch; ``settings`` become text chunks."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata=settings)
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """An ``<svg>`` element that scales, takes the page's text colour, and whose ids all begin with ``name``."""
    import html

    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(SVG_SETTINGS):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for side in ("width", "height"):
        text = re.sub(rf'<svg ([^>]*?){side}="[^"]*"', r"<svg \1", text, count=1)
    label = f'<svg role="img" aria-label="{html.escape(description)}" '
    return text.replace("<svg ", label, 1).replace(INK, "currentColor").strip()
