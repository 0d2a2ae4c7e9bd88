"""Rows as bars or as dots with their spread, each under a line of its own that names it: so it fits any window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .plots import Spec, zoom
from .theme import BAD, INK, MUTED

BAND_PX = 44
MARK_PX = 14
CHARACTER_PX = 7
"""Of the values' font, about."""


@dataclass(frozen=True)
class Bar:
    """One row of a plot."""

    label: str
    value: float
    text: str
    """The value for people, with its unit; it stands at the right end of the label's line."""
    colour: str
    low: float | None = None
    high: float | None = None
    start: float = 0.0
    """Where the bar begins: a waterfall's bars begin where the one before ended."""


def bars(
    rows: Sequence[Bar],
    axis_title: str,
    *,
    mark: Literal["bar", "dot"] = "bar",
    scale: Literal["linear", "log"] = "linear",
    limit: tuple[float, str] | None = None,
) -> Spec:
    """Bars from `start`, or dots (what a log scale needs, since it has no 0); low and high are drawn as a line.

    limit: a value that the rows are held against, and its name.
    """
    x = {"field": "end", "type": "quantitative", "title": axis_title, "scale": _scale(rows, scale, limit)}
    if scale == "log":
        x["axis"] = {"gridOpacity": 0.45}  # nine lines a decade
    layers = [_marks(mark, x), *_names(rows)]
    if any(row.low is not None for row in rows):
        layers.insert(1, _spread(x))
    if limit is not None:
        layers += _limit(*limit, x, "left" if limit[0] < max(row.value for row in rows) / 2 else "right")
    return {
        "data": {"values": [{**asdict(row), "order": i, "end": row.start + row.value} for i, row in enumerate(rows)]},
        "height": {"step": BAND_PX},
        "encoding": {"y": {"field": "order", "type": "ordinal", "axis": None, "scale": {"padding": 0}}},
        "layer": layers,
    }


def _marks(mark: str, x: dict[str, Any]) -> Spec:
    """The bars or dots themselves."""
    kinds: dict[str, Spec] = {
        "bar": {"type": "bar", "height": MARK_PX, "yOffset": 6, "clip": True},
        "dot": {"type": "point", "size": 110, "yOffset": 6, "clip": True},
    }
    encoding = {
        "x": x,
        "color": {"field": "colour", "type": "nominal", "scale": None},
        "tooltip": [{"field": "label", "title": "what"}, {"field": "text", "title": x["title"]}],
    }
    if mark == "bar":
        encoding["x2"] = {"field": "start"}
    return {"params": zoom("x"), "mark": kinds[mark], "encoding": encoding}


def _names(rows: Sequence[Bar]) -> list[Spec]:
    """Above each mark its name at the left, cut short where the window is narrow, and its value at the right."""
    room_px = CHARACTER_PX * max(len(row.text) for row in rows) + 12
    place = {"type": "text", "baseline": "middle", "yOffset": -12}
    return [
        {
            "mark": {**place, "align": "left", "limit": {"expr": f"width - {room_px}"}},
            "encoding": {"x": {"value": 0}, "text": {"field": "label"}},
        },
        {
            "mark": {**place, "align": "right", "color": MUTED},
            "encoding": {"x": {"value": "width"}, "text": {"field": "text"}},
        },
    ]


def _scale(rows: Sequence[Bar], kind: str, limit: tuple[float, str] | None) -> dict[str, Any]:
    """Room at the right when the limit's line would run through the values there."""
    if kind == "log":
        return {"type": "log", "nice": True}
    longest = max(row.start + row.value for row in rows)
    crowded = limit is not None and 0.8 * longest < limit[0]
    return {"domainMax": 1.25 * max(longest, limit[0])} if limit and crowded else {"nice": True}


def _spread(x: dict[str, Any]) -> Spec:
    """A line from low to high."""
    return {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 2, "yOffset": 6, "color": INK, "opacity": 0.75, "clip": True},
        "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
    }


def _limit(value: float, name: str, x: dict[str, Any], align: str) -> list[Spec]:
    """A dashed line through all rows, named above them."""
    at = {**x, "field": "at"}
    data = {"values": [{"at": value, "name": name}]}
    return [
        {
            "data": data,
            "mark": {"type": "rule", "color": BAD, "strokeWidth": 2, "strokeDash": [5, 4], "clip": True},
            "encoding": {"x": at, "y": {"value": 0}, "y2": {"value": "height"}, "tooltip": {"field": "name"}},
        },
        {
            "data": data,
            # clip: a view whose scales can be moved would cut the name off, which stands above it
            "mark": {"type": "text", "color": BAD, "baseline": "bottom", "dy": -6, "align": align, "clip": False},
            "encoding": {"x": at, "y": {"value": 0}, "text": {"field": "name"}},
        },
    ]
