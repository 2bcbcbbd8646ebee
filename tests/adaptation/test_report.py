"""The report is well-formed and complete, and needs no network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from flashar_cli.adaptation import report as module
from flashar_cli.adaptation.report import SECTIONS, render
from tests.adaptation.runs import PROBE, adapt_report, run_records

VOID = {"meta", "img", "br", "hr", "link", "input"}
SAMPLES = tuple(np.full((20, 24, 40, 3), shade, np.uint8) for shade in (10, 200))


class Page(HTMLParser):
    """Checks that tags nest, and collects text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.mark.parametrize("probe", (PROBE, None))
@pytest.mark.parametrize("samples", (SAMPLES, None))
def test_all_sections_in_one_file(probe, samples) -> None:
    text = render(adapt_report(probe=probe, samples=samples, records=run_records(resumed_at=6)))
    page = Page(text)
    absent = ({"Probe"} if probe is None else set()) | ({"Samples"} if samples is None else set())
    assert page.headings == [name for name in SECTIONS if name not in absent]
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    local = {reference[1:] for reference in page.references if reference.startswith("#")}
    local |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert local <= set(page.ids)
    assert page.tags.count("img") == (0 if samples is None else 40)


def test_headline() -> None:
    text = " ".join(Page(render(adapt_report(records=run_records(resumed_at=6)))).text.split())
    for words in ("raster loss before 2.000", "fused loss after 3.000", "+1.000", "gate after 0.600", "steps 10"):
        assert words in text
    assert "time 5 s" in text and "resumed once" in text
    assert "32 GFLOP/s, 50% of the measured peak" in text
    assert "layer 1 depth 1 sees_prefix True gate hidden" in text  # of the config; the recipe's is null
    assert "2.00 epochs" in text and "1.00 GiB" in text


def test_everything_is_escaped() -> None:
    evil = '<b>bold</b> & "quoted" <script>alert(1)</script>'
    names = [f"<i>{k % 10}" for k in range(20)]
    recipe = adapt_report().recipe | {"data": {"source": "<u>folder"}}
    text = render(adapt_report(base_name=evil, recipe=recipe, samples=SAMPLES, sample_names=names))
    page = Page(text)
    assert not {"b", "i", "u", "script"} & set(page.tags)
    assert evil in page.text and "<u>folder" in page.text and "<i>3" in page.text


def test_without_matplotlib_there_is_still_a_report(monkeypatch) -> None:
    monkeypatch.setattr(module, "has_matplotlib", lambda: False)
    page = Page(render(adapt_report(probe=PROBE, samples=SAMPLES)))
    assert page.headings == ["Validation", "Curves", "Samples", "Settings"]
    assert "matplotlib package is not installed" in page.text


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1)])
def test_a_grid_of_one_line(height: int, width: int) -> None:
    assert "Gate map" in Page(render(adapt_report(gates_HW=np.ones((height, width))))).headings
