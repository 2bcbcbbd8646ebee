"""Building blocks of one self-contained HTML page: no network, no scripts, light and dark, fit to print.

Every function returns markup and escapes the text that it is given, but for arguments named ``*_html``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --soft: #5c626b; --paper: #ffffff; --card: #f4f5f7; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #9aa1ab; --paper: #15171b; --card: #1f2228; --line: #363b44; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p.subtitle { color: var(--soft); margin: .25rem 0 1.5rem; overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .6rem; margin: 0; }
dl.facts > div { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .55rem .75rem; }
dl.facts dt { color: var(--soft); font-size: .85rem; }
dl.facts dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
dl.facts dd small { display: block; color: var(--soft); font-size: .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
table.numbers :is(th, td):not(:first-child) { text-align: right; padding: .25rem 0 .25rem 1.2rem; }
table.numbers td:first-child { white-space: nowrap; }
table.values th { color: var(--soft); font-weight: 400; white-space: nowrap; }
table.values td { overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem 2rem; }
.columns.broad { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure.narrow { max-width: 34rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: 1rem .9rem;
  margin-top: .75rem; }
.pairs figure { display: grid; gap: 3px; }
.pairs img { display: block; width: 100%; }
.pairs img.small { image-rendering: pixelated; }
.pairs figcaption { grid-column: 1 / -1; text-align: center; font-size: .8rem; }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb; }
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .columns { grid-template-columns: 1fr 1fr 1fr; gap: 1rem 1.25rem; }
  .columns.broad { grid-template-columns: 1fr 1fr; }
  .pairs { grid-template-columns: repeat(5, 1fr); }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""

_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
<p class="subtitle">$subtitle</p>
$body
</body>
</html>
"""
)


def page(title: str, subtitle: str, sections_html: Sequence[str]) -> str:
    """The whole document."""
    return _PAGE.substitute(title=escape(title), subtitle=escape(subtitle), style=_STYLE, body="\n".join(sections_html))


def section(title: str, *parts_html: str) -> str:
    """A heading and what belongs to it."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts_html, "</section>"])


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def facts(items: Sequence[tuple[str, str, str]]) -> str:
    """A row of cards: (what, value, remark)."""
    cards = [
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for what, value, remark in items
    ]
    return '<dl class="facts">' + "".join(cards) + "</dl>"


def number_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows; the others are numbers."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def value_table(title: str, items: Sequence[tuple[str, str]]) -> str:
    """Names and their values under a small heading."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in items)
    return f'<div class="wide"><h3>{escape(title)}</h3><table class="values"><tbody>{rows}</tbody></table></div>'


def columns(*parts_html: str, broad: bool = False) -> str:
    """Side by side where the page is wide enough: up to three, or two ``broad`` ones."""
    kind = "columns broad" if broad else "columns"
    return f'<div class="{kind}">' + "\n".join(parts_html) + "</div>"


def figure(svg_html: str, title: str, caption: str = "", narrow: bool = False) -> str:
    """A drawing with its title and caption."""
    kind = ' class="narrow"' if narrow else ""
    return f"<figure{kind}><h3>{escape(title)}</h3>{svg_html}<figcaption>{escape(caption)}</figcaption></figure>"


def image_groups(
    groups: Sequence[NDArray[np.uint8]], names: Sequence[str], sides: Sequence[str], most_pixels: int
) -> str:
    """Images uint8 [B, h, w, 3] of each side, those of one name beside each other, ``names`` [B] below; ``sides`` say
    whose images they are. Images wider than ``most_pixels`` are made smaller.
    """
    figures = []
    for name, *together in zip(names, *groups, strict=True):
        images = [_image(pixels, f"{name}, {side}", most_pixels) for pixels, side in zip(together, sides, strict=True)]
        columns = f"grid-template-columns: repeat({len(images)}, 1fr)"
        figures.append(f'<figure style="{columns}">{"".join(images)}<figcaption>{escape(name)}</figcaption></figure>')
    return '<div class="pairs">' + "\n".join(figures) + "</div>"


def _image(pixels: NDArray[np.uint8], description: str, most_pixels: int) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((most_pixels, most_pixels))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # A small image is enlarged with sharp pixels rather than blurred.
    kind = ' class="small"' if image.width < most_pixels // 2 else ""
    return f'<img{kind} src="data:image/png;base64,{data}" alt="{escape(description)}">'
