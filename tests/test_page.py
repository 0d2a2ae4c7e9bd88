"""Pages: that they are whole in one file, draw in a browser, fit narrow windows, follow light and dark, and sort."""

import os
import subprocess
import sys

import pytest
from pages import opened

from deit_fast.page import Page
from deit_fast.page.plots import vega_of, write_svg, zoom
from deit_fast.page.theme import PALETTE

STAGES = [{"stage": "teacher", "ms": 3.2}, {"stage": "student", "ms": 4.1}, {"stage": "</script>", "ms": 0.4}]
BARS = {
    "data": {"values": STAGES},
    "height": {"step": 30},
    "params": zoom("x"),
    "mark": "bar",
    "encoding": {
        "y": {"field": "stage", "type": "nominal"},
        "x": {"field": "ms", "type": "quantitative"},
        "color": {"field": "stage", "type": "nominal"},
    },
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    page = Page("A page", "of everything")
    page.verdict("Missed: 412 of 1,482.8 images/s", False, ["Cache the labels: `deit-fast teacher-cache`"], share=0.278)
    page.cards([("days", "10.8", "of 3"), ("MFU", "41 %", "")])
    page.section("Stages <all>", "As they were measured.")
    page.figure(BARS, "Medians of 5 turns")
    page.table(["stage", "images/s"], [["teacher", 412.25], ["student", None], ["loader", 1735], ["mixing", 98.5]])
    page.details("Configuration", "a: <1>")
    return page.write(tmp_path_factory.mktemp("page") / "deep" / "page.html")


def colour(name, scheme):
    value = PALETTE[name][scheme == "dark"].lstrip("#")
    return f"rgb({', '.join(str(int(value[i : i + 2], 16)) for i in (0, 2, 4))})"


@pytest.mark.parametrize(("width_px", "scheme"), [(1200, "light"), (360, "dark")])
def test_a_page_in_a_browser(chromium, page_file, width_px, scheme):
    with opened(chromium, page_file, width_px=width_px, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width_px
        assert page.locator("h2").inner_text() == "Stages <all>"
        assert page.locator(".verdict.bad code").inner_text() == "deit-fast teacher-cache"
        bars = page.locator(".mark-rect.role-mark path[aria-roledescription=bar]")
        assert {bars.nth(i).get_attribute("aria-label").split(";")[0] for i in range(bars.count())} == {
            "ms: 3.2", "ms: 4.1", "ms: 0.4",
        }  # fmt: skip
        widths = {bars.nth(i).get_attribute("aria-label"): bars.nth(i).bounding_box()["width"] for i in range(3)}
        assert max(widths, key=widths.get).startswith("ms: 4.1")
        assert bars.first.evaluate("e => getComputedStyle(e).fill").startswith("rgb(")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == colour("paper", scheme)
        fills = {bars.nth(i).evaluate("e => getComputedStyle(e).fill") for i in range(3)}
        assert fills == {colour(f"series-{i}", scheme) for i in (1, 2, 3)}


def test_a_table_sorts_by_number_and_dashes_stay_last(chromium, page_file):
    with opened(chromium, page_file) as page:

        def column():
            return page.locator("tbody tr td:last-child").all_inner_texts()

        assert column() == ["412.2", "–", "1,735", "98.5"]
        page.locator("th button").last.click()
        assert column() == ["1,735", "412.2", "98.5", "–"]
        page.locator("th button").last.click()
        assert column() == ["98.5", "412.2", "1,735", "–"]
        page.locator("th button").first.click()
        assert page.locator("tbody tr td:first-child").all_inner_texts() == ["teacher", "student", "mixing", "loader"]


def test_a_figure_zooms_with_shift_and_lets_the_page_scroll_without(chromium, page_file):
    with opened(chromium, page_file) as page:
        bar = page.locator(".mark-rect.role-mark path[aria-roledescription=bar]").first
        before = bar.bounding_box()["width"]
        bar.hover()
        page.mouse.wheel(0, -300)
        assert bar.bounding_box()["width"] == pytest.approx(before)
        page.keyboard.down("Shift")
        page.mouse.wheel(0, -300)
        page.wait_for_function(f"document.querySelector('[aria-roledescription=bar]').getBBox().width > {before} + 1")


def test_what_is_no_drawing_and_no_table_is_refused():
    with pytest.raises(ValueError, match="not a Vega-Lite drawing"):
        vega_of({"marks": "bar"})
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headings"):
        Page("t").table(["a", "b"], [["x"]])


def test_an_svg_follows_light_and_dark(tmp_path):
    write_svg(BARS, tmp_path / "docs" / "plot.svg")
    svg = (tmp_path / "docs" / "plot.svg").read_text()
    assert svg.startswith("<svg")
    assert 'fill="var(--series-2)"' in svg
    assert svg.index("prefers-color-scheme:dark") < svg.index("</style>") < svg.index("<path")


def test_pages_and_plots_are_utf8_whatever_the_locale(tmp_path):
    """A page's own marks are no ASCII, and it says that it is UTF-8."""
    script = (
        "import sys; from pathlib import Path; from deit_fast.page import Page; from deit_fast.page.plots import *\n"
        "spec = {'data': {'values': [{'a': 1}]}, 'mark': 'bar', 'title': '\\u00d7'}\n"
        "page = Page('A page'); page.verdict('\\u00d7', True); page.write(Path(sys.argv[1], 'page.html'))\n"
        "write_svg(spec, Path(sys.argv[1], 'plot.svg'))\n"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=os.environ | ascii_only, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("page.html", "plot.svg"):
        assert "\u00d7" in (tmp_path / name).read_text(encoding="utf-8")
