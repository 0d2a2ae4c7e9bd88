"""How much of the hardware's arithmetic is reached: stages against the peak, kernels under their roof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deit_fast.page.bars import Bar, bars
from deit_fast.page.page import format_number
from deit_fast.page.plots import Spec, zoom
from deit_fast.page.theme import INK, MUTED

from .figures import colour_of, named
from .results import Row, is_total


def arithmetic(rows: Sequence[Row], peak_tflops: float) -> Spec:
    """The rate of every row that is arithmetic, against the peak: the roof of a roofline. GFLOP/s for small devices."""
    unit, factor = ("TFLOP/s", 1.0) if peak_tflops >= 1 else ("GFLOP/s", 1e3)
    rates = [(row, row["images_per_second"] * row["tflops_per_image"]) for row in rows if row.get("tflops_per_image")]
    return bars(
        [
            Bar(
                named(row),
                factor * rate,
                f"{format_number(factor * rate)} {unit}, {rate / peak_tflops:.1%}",
                INK if is_total(row) else colour_of(row),
            )
            for row, rate in rates
        ],
        f"{unit} that the mathematics asks for",
        limit=(factor * peak_tflops, f"peak {format_number(factor * peak_tflops)}"),
    )


def roofline(kernels: Sequence[Row], roof: tuple[float, float] | None) -> Spec:
    """TFLOP/s over FLOP a byte of each kernel and implementation, on log scales. roof: peak FLOP/s, bytes/s."""
    points = [
        {
            "kernel": row["workload"],
            "by": row["name"],
            "flop_per_byte": 1e3 * row["tflop_per_second"] / row["gb_per_second"],
            "tflop_per_second": row["tflop_per_second"],
            "ms": row["ms"],
        }
        for row in kernels
        if row.get("tflop_per_second")
    ]
    line = roof_line(roof, [point["flop_per_byte"] for point in points]) if roof and points else []
    x = _log_axis("flop_per_byte", "FLOP a byte", [*points, *line])
    y = _log_axis("tflop_per_second", "TFLOP/s", [*points, *line])
    layers: list[Spec] = [
        {
            "params": zoom("x", "y"),
            "mark": {"type": "point", "size": 90, "clip": True},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "by", "type": "nominal", "title": None},
                "shape": {
                    "field": "kernel",
                    "type": "nominal",
                    "title": None,
                    "legend": {"symbolFillColor": MUTED, "symbolStrokeColor": MUTED},
                },
                "tooltip": [{"field": name} for name in ("kernel", "by", "ms", "tflop_per_second", "flop_per_byte")],
            },
        }
    ]
    if line:
        dashes = {"type": "line", "color": MUTED, "strokeDash": [5, 4], "clip": True}
        layers.append({"data": {"values": line}, "mark": dashes, "encoding": {"x": x, "y": y}})
    return {"data": {"values": points}, "height": 320, "layer": layers}


def _log_axis(field: str, title: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """With room at both ends, also when all points have the same value."""
    values = [point[field] for point in points]
    scale = {"type": "log", "domain": [min(values) / 2, max(values) * 2], "nice": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"gridOpacity": 0.45}}


def roof_line(roof: tuple[float, float], intensities: list[float]) -> list[dict[str, float]]:
    """The memory's slope up to the ridge, and the peak behind it. roof: peak FLOP/s, bytes/s."""
    flops, bandwidth = roof
    ridge = flops / bandwidth
    corners = sorted({min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2})
    return [{"flop_per_byte": at, "tflop_per_second": min(flops, at * bandwidth) / 1e12} for at in corners]
