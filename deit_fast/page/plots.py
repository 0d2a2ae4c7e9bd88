"""Vega-Lite drawings: for a page, where they can be zoomed, and as an SVG file for the docs.

Vega-Lite was chosen for its size (0.9 MB in a page; plotly 7.1 takes 4.8, Bokeh 3.9 1.3 without its widgets), for
colours that are CSS variables and so follow light and dark, and for drawing the same as SVG without a browser. The Vega
project's vl-convert-python has all of it.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

from .theme import VEGA_CONFIG, css_variables

Spec = dict[str, Any]
"""A Vega-Lite specification, as https://vega.github.io/vega-lite/docs/spec.html has it; `theme` has its colours."""

STATIC_WIDTH_PX = 720


def plotting_library() -> Any:
    """The module vl_convert; RuntimeError, naming the extra, where it is missing."""
    try:
        import vl_convert
    except ImportError as error:
        raise RuntimeError(
            f"pages and plots need {error.name}; install it by `pip install 'deit-fast[report]'`"
        ) from error
    return vl_convert


@functools.cache
def javascript_bundle() -> str:
    """Vega and Vega-Embed in one script that defines `vegaEmbed`; it goes into a page as it is."""
    bundle: str = plotting_library().javascript_bundle()
    assert "</script" not in bundle.lower()
    return bundle


def zoom(*channels: str) -> list[Spec]:
    """`params` that let a reader move (drag), zoom (Shift + wheel) and reset (double click) these axes: "x", "y".

    Shift, because a plot that takes every turn of the wheel stops the page from scrolling.
    """
    parameter = {
        "name": "zoom",
        "select": {"type": "interval", "encodings": list(channels), "zoom": "wheel![event.shiftKey]"},
        "bind": "scales",
    }
    return [parameter]


def vega_of(spec: Spec, width: str | int = "container") -> dict[str, Any]:
    """The drawing as Vega, in the house's looks, as wide as its place; ValueError for what Vega-Lite does not take."""
    spec = {"width": width, **copy.deepcopy(spec)}
    spec["config"] = {**VEGA_CONFIG, **spec.get("config", {})}
    try:
        vega: dict[str, Any] = plotting_library().vegalite_to_vega(spec)
    except ValueError as error:
        raise ValueError(f"not a Vega-Lite drawing: {' '.join(str(error).split())[:300]}") from error
    return vega


def numbered_by_itself(svg: str) -> str:
    """With clip paths counted from 0: the library counts those of the whole process, so that no drawing came out twice
    alike."""
    numbers: dict[str, int] = {}
    return re.sub(r"\bclip(\d+)\b", lambda clip: f"clip{numbers.setdefault(clip[1], len(numbers))}", svg)


def write_svg(spec: Spec, path: Path) -> None:
    """Writes the drawing as an SVG that follows light and dark wherever it is shown, an <img> included."""
    svg = numbered_by_itself(plotting_library().vega_to_svg(vega_of(spec, STATIC_WIDTH_PX)))
    opening, rest = svg.split(">", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{opening}><style>{css_variables()}</style>{rest}\n", encoding="utf-8")
