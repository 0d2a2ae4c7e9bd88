"""The drawings of what is worked at in the phases: loader, model, device, memory; Vega-Lite specifications."""

from __future__ import annotations

from typing import Any

from deit_fast.page.plots import Spec, zoom
from deit_fast.page.theme import CARD, MUTED, SERIES

from .phase_figures import BAR_PX, COLOURS, lanes, number

MEANINGS = {
    "ExternalSource": "draws on the host",
    "io.file.Read": "read",
    "decoders.ImageSlice": "decode a crop",
    "Resize": "resize",
    "Flip": "flip",
    "branch: deit_fast.Crop": "decode, crop, resize, flip",
    "deit_fast.Augment": "augment, normalise, erase",
    "CropMirrorNormalize": "normalise",
    "branch: Erase": "erase",
}
"""DALI's operators -> what they do here. The native crop is one operator: no cut lies between its parts."""
MIB = 2**20


def meaning(operator: str) -> str:
    """What the operator is for, or its name."""
    return MEANINGS.get(operator, operator)


def loader_waterfall(record: dict[str, Any]) -> Spec:
    """What each operator adds to the loader's CPU time of an image."""
    values, before = [], 0.0
    for i, row in enumerate(record["loader"]["operators"]):
        values.append(
            {**row, "what": meaning(row["operator"]), "begin": before, "end": row["total_cpu_ms"], "order": i}
        )
        before = row["total_cpu_ms"]
    encoding = {
        "y": {
            "field": "what",
            "type": "nominal",
            "title": None,
            "sort": {"field": "order"},
            "axis": {"labelLimit": 260},
        },
        "x": number("begin", "CPU-ms an image"),
        "x2": {"field": "end"},
        "tooltip": [{"field": "operator"}, number("cpu_ms", "adds CPU-ms", format=".3f")],
        "color": {"value": SERIES[COLOURS["data"]]},
    }
    return lanes(values, encoding)


def module_bars(record: dict[str, Any]) -> Spec:
    """Forward and backward of each part of the model."""
    values = [
        {"module": row["module"], "direction": direction, "ms": row[f"{direction}_ms"]}
        for row in record["operators"]["modules"]
        if row["share"] >= 0.002
        for direction in ("forward", "backward")
    ]
    encoding = {
        "y": {"field": "module", "type": "nominal", "title": None, "sort": None},
        "x": number("ms", "ms a step", stack="zero"),
        "color": {
            "field": "direction",
            "type": "nominal",
            "title": None,
            "scale": {"domain": ["forward", "backward"], "range": [SERIES[0], SERIES[2]]},
        },
        "tooltip": [{"field": "module"}, {"field": "direction"}, number("ms", "ms", format=".3f")],
    }
    return lanes(values, encoding)


def roofline(record: dict[str, Any]) -> Spec:
    """Operators with arithmetic by their intensity and speed, under this device's measured roof."""
    peaks = record["operators"]["peaks"]
    rows = [row for row in record["operators"]["roofline"] if row["flops_per_byte"]][: len(SERIES)]
    ridge = peaks["flops_per_second"] / peaks["bytes_per_second"]
    intensities = [row["flops_per_byte"] for row in rows] + [ridge]
    ends = [min(intensities) / 2, ridge, max(intensities) * 2]
    roof = [{"x": x, "y": min(peaks["flops_per_second"], x * peaks["bytes_per_second"]) / 1e9} for x in ends]
    log = {"type": "log"}
    return {
        "height": 260,
        "layer": [
            {
                "data": {"values": roof},
                "mark": {"type": "line", "color": MUTED, "strokeDash": [5, 4], "clip": True},
                "encoding": {"x": number("x", "FLOPs a byte", scale=log), "y": number("y", "GFLOP/s", scale=log)},
            },
            {
                "params": zoom("x", "y"),
                "data": {"values": rows},
                "mark": {"type": "point", "opacity": 0.8, "clip": True},
                "encoding": {
                    "color": {
                        "field": "operator",
                        "type": "nominal",
                        "title": None,
                        "sort": None,
                        "legend": {"columns": 2},
                    },
                    "x": number("flops_per_byte", "FLOPs a byte", scale=log),
                    "y": number("gflops_per_second", "GFLOP/s", scale=log),
                    "size": number("ms_per_step", "ms", legend=None, scale={"range": [40, 700]}),
                    "tooltip": [
                        {"field": "operator"},
                        number("ms_per_step", "ms a step", format=".3f"),
                        number("of_roof", "of the roof", format=".0%"),
                    ],
                },
            },
        ],
    }


def idle_bar(record: dict[str, Any]) -> Spec:
    """Compute, communication, memory, and idle time by its cause."""
    idle = record["idle"]
    names = ["compute", "communication", "memory"]
    shares = {name: idle[name] for name in names} | {f"idle: {k}": v for k, v in idle["idle_causes"].items()}
    rest = max(0.0, 1 - sum(shares.values()))
    if rest > 0.005:
        shares["idle: other"] = rest
    values = [{"what": name, "share": share, "order": i} for i, (name, share) in enumerate(shares.items())]
    return {
        "data": {"values": values},
        "height": BAR_PX,
        "mark": {"type": "bar", "stroke": CARD, "strokeWidth": 1},
        "encoding": {
            "x": number("share", "share of the traced steps", stack="zero", axis={"format": "%"}),
            "color": {
                "field": "what",
                "type": "nominal",
                "title": None,
                "sort": None,
                "legend": {"labelLimit": 320, "columns": 3},
                "scale": {"domain": list(shares), "range": [SERIES[i] for i in (0, 4, 2, 1, 5, 3, 5)][: len(shares)]},
            },
            "order": {"field": "order"},
            "tooltip": [{"field": "what"}, number("share", "share", format=".1%")],
        },
    }


def memory_timeline(record: dict[str, Any]) -> Spec:
    """What is allocated, over the traced steps."""
    values = [
        {"ms": ms, "mib": allocated / MIB, "phase": phase} for ms, allocated, phase in record["memory"]["timeline"]
    ]
    return {
        "data": {"values": values},
        "height": 220,
        "params": zoom("x"),
        "mark": {"type": "area", "color": SERIES[0], "opacity": 0.35, "line": {"color": SERIES[0]}, "clip": True},
        "encoding": {
            "x": number("ms", "ms of the traced steps"),
            "y": number("mib", "MiB allocated"),
            "tooltip": [number("ms", "ms", format=".1f"), number("mib", "MiB", format=",.1f"), {"field": "phase"}],
        },
    }
