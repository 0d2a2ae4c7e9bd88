"""The report's drawings: each a function of rows."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from deit_fast.bench_records import Record
from deit_fast.page.bars import Bar, bars
from deit_fast.page.page import format_number
from deit_fast.page.plots import Spec, zoom
from deit_fast.page.theme import BAD, INK, SERIES

from .results import FULL, Row, is_ours, is_total, loader_stages, ms_per_image, stages, totals

OURS_COLOUR, LOADER_COLOUR, PEER_COLOUR, VARIANT_COLOUR = SERIES[0], SERIES[3], SERIES[5], SERIES[2]
AUGMENTATION = "augmentation"
"""In a verdict: what the full recipe adds to decoding and cropping."""
NOT_THE_RECIPE = "(not the recipe)"
GIB = 2**30
DEVICE_MEMORY = {"torch": ("torch", SERIES[0]), "dali": ("DALI", SERIES[2])}
"""Of a row's peak_memory_bytes: whose, and its colour."""


def named(row: Row) -> str:
    """A row's workload, and who did it where it was not us."""
    return row["workload"] if row["name"] == "deit_fast" else f"{row['workload']}, {row['name']}"


def is_recipe(row: Row) -> bool:
    """Ours, and nothing cheaper than the recipe."""
    return is_ours(row) and NOT_THE_RECIPE not in row["name"]


def is_main(row: Row) -> bool:
    """A whole step or a whole loader of ours: what is worth following over time."""
    return is_recipe(row) and (is_total(row) or row["workload"] == FULL)


def colour_of(row: Row) -> str:
    """Ours, ours but cheaper than the recipe, others'."""
    if not is_ours(row):
        return PEER_COLOUR
    return VARIANT_COLOUR if NOT_THE_RECIPE in row["name"] else OURS_COLOUR


def waterfall(record: Record, required_images_per_second: float) -> Spec:
    """Milliseconds an image: the loader's stages, the step's one after another, whole steps; what limits is red."""
    verdict = record.get("verdict") or {}
    limiting = verdict.get("limiting_stage")
    if limiting == AUGMENTATION:
        limiting = FULL

    def step(row: Row, colour: str, start: float = 0.0) -> Bar:
        ms = ms_per_image(row)
        colour = BAD if row["workload"] == limiting else colour
        return Bar(row["workload"], ms, f"{format_number(ms)} ms", colour, start=start)

    parts = stages(record)
    starts = itertools.accumulate((ms_per_image(row) for row in parts), initial=0.0)
    steps = [step(row, LOADER_COLOUR) for row in loader_stages(record)]
    steps += [step(row, OURS_COLOUR, start) for row, start in zip(parts, starts, strict=False)]
    steps += [step(row, INK) for row in totals(record)]
    allowed = 1e3 / required_images_per_second
    whose = "budget" if verdict.get("is_budget_model") else "DeiT-B's budget"
    return bars(steps, "ms an image", limit=(allowed, f"{whose} {format_number(allowed)} ms"))


def throughput(rows: Sequence[Row], required_images_per_second: float) -> Spec:
    """Images/s of everything that was measured, on a log scale, against what the budget asks of these devices."""
    dots = [
        Bar(
            named(row),
            row["images_per_second"],
            f"{format_number(row['images_per_second'])} images/s",
            INK if is_total(row) else colour_of(row),
            row.get("images_per_second_p20"),
            row.get("images_per_second_p80"),
        )
        for row in rows
    ]
    limit = (required_images_per_second, f"budget {required_images_per_second:,.1f}")
    return bars(dots, "images/s, log scale", mark="dot", scale="log", limit=limit)


def speed_and_cost(row: Row) -> str:
    """`1,735 images/s, 1.11 CPU-ms`; turns may be too short to tell the CPU time."""
    cpu_ms = row.get("cpu_ms_per_image")
    return f"{row['images_per_second']:,.0f} images/s" + ("" if cpu_ms is None else f", {format_number(cpu_ms)} CPU-ms")


def contenders(rows: Sequence[Row]) -> Spec:
    """Images/s of one workload's contenders, ours in colour, with p20 to p80."""
    spec = bars(
        [
            Bar(
                row["name"],
                row["images_per_second"],
                speed_and_cost(row),
                colour_of(row),
                row.get("images_per_second_p20"),
                row.get("images_per_second_p80"),
            )
            for row in sorted(rows, key=lambda row: -row["images_per_second"])
        ],
        "images/s",
    )
    return {"title": rows[0]["workload"], **spec}


def step_ms(row: Row) -> list[float]:
    """Milliseconds a step of each turn: itself where a turn is one step, else the mean of its steps."""
    turns = [1e3 * row["images_per_turn"] / speed for speed in row["turn_images_per_second"]]
    steps = max(1, round(statistics.median(turns) / row["step_ms_p50"]))
    return sorted(ms / steps for ms in turns)


def latency(rows: Sequence[Row]) -> Spec:
    """The share of turns whose steps took at most so long; p50, p95 and p99 of single steps as diamonds."""
    turns = [
        {"what": named(row), "ms": ms, "share": (i + 1) / len(row["turn_images_per_second"])}
        for row in rows
        for i, ms in enumerate(step_ms(row))
    ]
    percentiles = [
        {"what": named(row), "ms": row[f"step_ms_p{p}"], "share": p / 100} for row in rows for p in (50, 95, 99)
    ]
    x = {"field": "ms", "type": "quantitative", "title": "ms a step", "scale": {"zero": False, "padding": 16}}
    y = {"field": "share", "type": "quantitative", "title": "share", "scale": {"domain": [0, 1.05], "nice": False}}
    y["axis"] = {"format": "%", "values": [0, 0.25, 0.5, 0.75, 1]}
    encoding = {
        "x": x,
        "y": y,
        "color": {"field": "what", "type": "nominal", "title": None},
        "tooltip": [{"field": "what"}, {"field": "ms", "format": ",.2f"}, {"field": "share", "format": ".0%"}],
    }
    line = {"type": "line", "interpolate": "step-after", "clip": True}
    diamond = {"type": "point", "shape": "diamond", "size": 110, "clip": True}
    return {
        "height": 240,
        "encoding": encoding,
        "layer": [
            {"data": {"values": turns}, "params": zoom("x"), "mark": line},
            {"data": {"values": percentiles}, "mark": diamond},
        ],
    }


def has_memory(row: Row) -> bool:
    """Whether a row tells of a device's memory; without a GPU there is none."""
    return any((row.get("peak_memory_bytes") or {}).get(part) for part in DEVICE_MEMORY)


def memory(rows: Sequence[Row]) -> Spec:
    """GiB at the peak of each row on the device: torch's and DALI's."""
    return bars(
        [
            Bar(f"{named(row)}: {whose}", row["peak_memory_bytes"][part] / GIB, text_of_gib(row, part), colour)
            for row in rows
            for part, (whose, colour) in DEVICE_MEMORY.items()
            if row["peak_memory_bytes"].get(part)
        ],
        "GiB at the peak",
    )


def text_of_gib(row: Row, part: str) -> str:
    """`22.0 GiB`"""
    return f"{row['peak_memory_bytes'][part] / GIB:,.1f} GiB"


def history(records: Sequence[Record]) -> Spec:
    """Our whole steps and full recipe over commits, each relative to its first record."""
    first: dict[str, float] = {}
    points = []
    for number, record in enumerate(records):
        environment = record["environment"]
        for row in record["rows"]:
            speed = row.get("images_per_second")
            if not speed or not is_main(row):
                continue
            what = f"{record['bench']}: {named(row)}"
            series = f"{what}, {record['title']}, {environment['device']}, {environment['cpu']}"
            base = first.setdefault(series, speed)
            points.append(
                {
                    "what": what,
                    "series": series,
                    "record": f"{number} {environment.get('commit') or 'wheel'}",
                    "relative": speed / base,
                    "low": row["images_per_second_p20"] / base,
                    "high": row["images_per_second_p80"] / base,
                    "images_per_second": speed,
                    "time": record.get("time", ""),
                }
            )
    x = {"field": "record", "type": "ordinal", "sort": None, "title": "commit",
         "axis": {"labelExpr": "split(datum.label, ' ')[1]", "labelAngle": 0}}  # fmt: skip
    y = {"type": "quantitative", "title": "relative to the first", "scale": {"zero": False}, "axis": {"format": "%"}}
    colour = {
        "field": "what",
        "type": "nominal",
        "title": None,
        "legend": {"columns": 1, "labelLimit": {"expr": "width - 24"}},
    }
    return {
        "data": {"values": points},
        "height": 260,
        "encoding": {"x": x, "color": colour, "detail": {"field": "series", "type": "nominal"}},
        "layer": [
            {
                "mark": {"type": "line", "point": {"size": 60}},
                "encoding": {
                    "y": {**y, "field": "relative"},
                    "tooltip": [{"field": name} for name in ("series", "record", "time", "images_per_second")],
                },
            },
            {
                "mark": {"type": "rule", "opacity": 0.5},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
        ],
    }
