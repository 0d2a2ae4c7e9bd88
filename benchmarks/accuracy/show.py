"""The experiment's record as a table, a drawing and a section of a page."""

from __future__ import annotations

from typing import Any

from deit_fast.bench_records import Record
from deit_fast.page import Page
from deit_fast.page.plots import Spec, zoom
from deit_fast.page.theme import INK, SERIES

from ..table import markdown
from .intervals import Interval, interval


def percent(found: Interval, sign: str = "") -> str:
    """`86.31 ± 0.40 %`"""
    spread = "" if found.high is None else f" ± {found.high - found.mean:.2f}"
    return f"{found.mean:{sign}.2f}{spread} %"


def table_rows(record: Record) -> list[list[str]]:
    """Variant, teacher's top-1, student's top-1 with its interval, number of seeds."""
    return [
        [
            row["name"],
            "" if row["teacher_top1"] is None else f"{row['teacher_top1']:.2f} %",
            percent(interval(row["seed_top1"])),
            str(len(row["seed_top1"])),
        ]
        for row in record["rows"]
    ]


def claim_rows(record: Record) -> list[list[str]]:
    """Claim, difference with its interval, whether it holds."""
    return [
        [claim["claim"], percent(Interval(claim["difference"], claim["low"], claim["high"]), "+"), claim["holds"]]
        for claim in record["claims"]
    ]


HEADINGS = ["variant", "teacher top-1", "student top-1", "seeds"]
CLAIM_HEADINGS = ["claim", "difference in top-1", "holds here"]


def accuracy_table(record: Record) -> str:
    """Both tables as Markdown."""
    return f"{markdown(HEADINGS, table_rows(record))}\n{markdown(CLAIM_HEADINGS, claim_rows(record))}"


def accuracy_plot(record: Record) -> Spec:
    """A dot for each seed, and the mean with its 95 % interval."""
    dots, means = [], []
    for row in record["rows"]:
        found = interval(row["seed_top1"])
        means.append({"what": row["name"], "mean": found.mean, "low": found.low, "high": found.high})
        dots += [{"what": row["name"], "top1": top1, "seed": seed} for seed, top1 in enumerate(row["seed_top1"])]
    x: dict[str, Any] = {"type": "quantitative", "scale": {"zero": False, "padding": 16}, "title": "top-1, %"}
    # room for labels: a viewer's font may be wider than the one it was drawn by
    axis = {"labelLimit": 240, "minExtent": 140, "grid": True}
    y = {"field": "what", "type": "nominal", "sort": None, "title": None, "axis": axis}
    seeds = {
        "data": {"values": dots},
        "params": zoom("x"),
        "mark": {"type": "point", "size": 60, "color": SERIES[0], "opacity": 0.65, "clip": True},
        "encoding": {"x": {**x, "field": "top1"}, "y": y, "tooltip": [{"field": name} for name in dots[0]]},
    }
    layers: list[Spec] = [seeds]
    if all(mean["low"] is not None for mean in means):
        spread: Spec = {
            "data": {"values": means},
            "mark": {"type": "rule", "strokeWidth": 3, "color": INK, "yOffset": 12, "clip": True},
            "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y},
        }
        layers.append(spread)
    centre: Spec = {
        "data": {"values": means},
        "mark": {"type": "tick", "thickness": 3, "size": 16, "color": INK, "yOffset": 12, "clip": True},
        "encoding": {"x": {**x, "field": "mean"}, "y": y, "tooltip": {"field": "mean", "format": ".2f"}},
    }
    return {"height": {"step": 48}, "layer": [*layers, centre]}


def add_to_page(page: Page, record: Record) -> None:
    """The section of a report."""
    page.section("What the recipe claims, in small", f"{record['title']}.")
    caption = "A dot a seed; the mean with its 95 % interval (Student's t). Drag to move, Shift and wheel to zoom."
    page.figure(accuracy_plot(record), caption)
    page.table(HEADINGS, table_rows(record))
    page.table(CLAIM_HEADINGS, claim_rows(record), sortable=False)
