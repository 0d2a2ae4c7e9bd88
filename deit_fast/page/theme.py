"""Colours of the pages, for light and for dark, and what of Vega's looks they change.

Colours are CSS variables: Vega's SVG renderer passes `var(--ink)` through, so that one drawing follows the reader's
`prefers-color-scheme` without a second rendering. Only discrete colours may be used so: Vega cannot interpolate names.
"""

from __future__ import annotations

from typing import Any

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

PALETTE = {
    "paper": ("#f7f7f4", "#101216"),
    "card": ("#ffffff", "#181b21"),
    "ink": ("#15171c", "#eceef2"),
    "muted": ("#5c6370", "#9aa2b1"),
    "line": ("#e2e3df", "#2b303a"),
    "good": ("#0c7a4d", "#46cf92"),
    "bad": ("#c2362b", "#ff7d6e"),
    "open": ("#8a6100", "#e6b450"),
    "series-1": ("#2458d3", "#79a4ff"),
    "series-2": ("#d9730d", "#f2a154"),
    "series-3": ("#0e8f83", "#4ecfc0"),
    "series-4": ("#8a4fc7", "#bd97f2"),
    "series-5": ("#c43a78", "#f28ab4"),
    "series-6": ("#747c89", "#8b93a1"),
}
"""Name -> (light, dark). The series are told apart by people who are colour-blind too; grey is for what is left."""

INK, MUTED, LINE, CARD, BAD = "var(--ink)", "var(--muted)", "var(--line)", "var(--card)", "var(--bad)"
SERIES = tuple(f"var(--{name})" for name in PALETTE if name.startswith("series"))

VEGA_CONFIG: dict[str, Any] = {
    "background": None,
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "range": {"category": list(SERIES)},
    "axis": {
        "domain": False, "ticks": False, "gridColor": LINE, "labelColor": MUTED, "titleColor": MUTED,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelPadding": 6, "titlePadding": 10,
        "labelOverlap": "greedy",
    },
    "axisX": {"tickCount": 6},
    "legend": {
        "orient": "top", "labelColor": INK, "titleColor": MUTED, "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal", "symbolType": "circle", "offset": 14,
        "columns": {"expr": "width < 480 ? 1 : 4"},  # what is beyond the window would be cut off
    },
    "title": {"color": INK, "fontSize": 13, "anchor": "start", "fontWeight": 600},
    "header": {"labelColor": INK, "titleColor": MUTED, "labelFontSize": 12},
    "text": {"color": INK, "fontSize": 12},
    "rule": {"color": MUTED},
    "bar": {"color": SERIES[0]},  # no cornerRadius: a stack of rounded bars is drawn as clipped groups, and vanishes
    "line": {"color": SERIES[0], "strokeWidth": 2},
    "point": {"color": SERIES[0], "filled": True, "size": 60, "opacity": 1},
    "area": {"color": SERIES[0]},
    "tick": {"color": INK},
}  # fmt: skip


def css_variables() -> str:
    """The palette as CSS: light, and dark for readers who prefer it."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
