"""The drawings of the phases: each a pure function from the record to a Vega-Lite specification."""

from __future__ import annotations

from typing import Any

from deit_fast.page.plots import Spec, zoom
from deit_fast.page.theme import CARD, SERIES

from .phases import PHASES
from .summary import recorded_steps

GROUPS = {
    "data": ("fetch", "feed"),
    "teacher": ("teacher", "teacher stream"),
    "student": ("forward", "loss", "backward"),
    "all-reduce": ("all-reduce tail", "all-reduce"),
    "update": ("optimizer", "EMA"),
    "rest": ("mix", "log"),
}
"""Phases and spans that share a colour; six are as many as can be told apart."""
COLOURS = {"data": 1, "teacher": 3, "student": 0, "all-reduce": 4, "update": 2, "rest": 5}
SHOWN_STEPS = 8
BAR_PX, LANE_PX = 38, 30

GROUP_COLOUR: Spec = {
    "field": "group",
    "type": "nominal",
    "scale": {"domain": list(GROUPS), "range": [SERIES[COLOURS[group]] for group in GROUPS]},
    "title": None,
}


def group_of(phase: str) -> str:
    """The group of a phase or span."""
    return next(group for group, names in GROUPS.items() if phase in names)


def number(field: str, title: str, **more: Any) -> Spec:
    """A quantitative channel."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def phase_bars(record: dict[str, Any]) -> Spec:
    """The mean step of each rank, phase after phase."""
    values = [
        {
            "rank": f"rank {rank['rank']}",
            "phase": row["phase"],
            "group": group_of(row["phase"]),
            "ms": row["by_rank_ms"][i],
            "order": PHASES.index(row["phase"]),
        }
        for row in record["phases"]
        for i, rank in enumerate(record["ranks"])
    ]
    return {
        "data": {"values": values},
        "height": {"step": BAR_PX},
        "params": zoom("x"),
        "mark": {"type": "bar", "stroke": CARD, "strokeWidth": 1, "clip": True},
        "encoding": {
            "y": {"field": "rank", "type": "nominal", "title": None},
            "x": number("ms", "ms", stack="zero"),
            "color": GROUP_COLOUR,
            "order": {"field": "order"},
            "tooltip": [{"field": "rank"}, {"field": "phase"}, number("ms", "ms", format=".3f")],
        },
    }


def timeline(record: dict[str, Any]) -> Spec:
    """Some recorded steps of every rank on one axis of time; what runs beside the phases has a lane of its own."""
    values = []
    for rank in record["ranks"]:
        name, begin = f"rank {rank['rank']}", 0.0
        for step in recorded_steps(rank)[:SHOWN_STEPS]:
            ends = [at for _, at in step["marks"][1:]] + [step["total_ms"]]
            for (phase, at), end in zip(step["marks"], ends, strict=True):
                values.append(_piece(name, phase, step["step"], begin + at, begin + end))
            for span, at, end in step["spans"]:
                values.append(_piece(f"{name}, beside", span, step["step"], begin + at, begin + end))
            begin += step["total_ms"]
    encoding = {
        "y": {"field": "lane", "type": "nominal", "title": None},
        "x": number("begin", "ms"),
        "x2": {"field": "end"},
        "color": GROUP_COLOUR,
        "tooltip": [{"field": "step"}, {"field": "phase"}, number("ms", "ms", format=".3f")],
    }
    return lanes(values, encoding)


def lanes(values: list[dict[str, Any]], encoding: Spec) -> Spec:
    """Bars in lanes, whose x axis can be zoomed."""
    return {
        "data": {"values": values},
        "height": {"step": LANE_PX},
        "params": zoom("x"),
        "mark": {"type": "bar", "clip": True},
        "encoding": encoding,
    }


def _piece(lane: str, phase: str, step: int, begin: float, end: float) -> dict[str, Any]:
    return {
        "lane": lane, "phase": phase, "group": group_of(phase), "step": step, "begin": begin, "end": end,
        "ms": end - begin,
    }  # fmt: skip


def step_times(record: dict[str, Any]) -> Spec:
    """Every measured step's time: with the marks, and bare."""
    values = [
        {"step": step["step"], "ms": step["total_ms"], "kind": step["kind"], "rank": rank["rank"]}
        for rank in record["ranks"]
        for step in rank["steps"]
        if step["kind"] in ("recorded", "bare")
    ]
    return {
        "data": {"values": values},
        "height": 170,
        "params": zoom("x", "y"),
        "mark": {"type": "point", "clip": True},
        "encoding": {
            "x": number("step", "step of the run", scale={"zero": False, "padding": 12}),
            "y": number("ms", "ms"),
            "color": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "scale": {"domain": ["recorded", "bare"], "range": [SERIES[0], SERIES[5]]},
            },
            "tooltip": [{"field": "rank"}, {"field": "step"}, {"field": "kind"}, number("ms", "ms", format=".2f")],
        },
    }
