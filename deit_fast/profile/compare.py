"""Two profiles side by side: what changed between them, and whether it is more than their spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .record import SCHEMA
from .summary import quantile, recorded_steps, times_of

SPREAD = (0.2, 0.8)


def read_record(path: str) -> dict[str, Any]:
    """A profile.json, or that of a folder; ValueError for another file, and for none."""
    file = Path(path) / "profile.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        folder = file.parent if file.suffix else file
        raise ValueError(f"{file} is not there; `deit-fast profile --out {folder}` would write it")
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema, _ = record["schema"], record["phases"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no profile; give the profile.json that `deit-fast profile` wrote") from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, this program reads {SCHEMA}; profile again")
    return record


def compare_records(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each phase of either, and the whole step: medians, difference, and whether the spreads part.

    `differs`: the 20 to 80 % ranges of the two do not overlap.
    """
    names = [row["phase"] for row in a["phases"]]
    names += [row["phase"] for row in b["phases"] if row["phase"] not in names]
    rows = []
    for name in [*names, "step"]:
        before, after = _values(a, name), _values(b, name)
        low_a, high_a = (quantile(before, q) for q in SPREAD)
        low_b, high_b = (quantile(after, q) for q in SPREAD)
        p50_a, p50_b = quantile(before, 0.5), quantile(after, 0.5)
        rows.append(
            {
                "phase": name,
                "a_ms": p50_a,
                "b_ms": p50_b,
                "change_ms": p50_b - p50_a,
                "ratio": p50_b / p50_a if p50_a else None,
                "differs": high_a < low_b or high_b < low_a,
            }
        )
    return rows


def _values(record: dict[str, Any], name: str) -> list[float]:
    steps = [step for rank in record["ranks"] for step in recorded_steps(rank)]
    if name == "step":
        return [step["total_ms"] for step in steps]
    return [times_of(step).get(name, 0.0) for step in steps]


def differing_config(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """`runtime.precision: bf16, fp32` for each key that differs, but for where things are."""
    lines = []
    for section, values in a["config"].items():
        for key, value in values.items():
            other = b["config"].get(section, {}).get(key)
            if value != other and section != "checkpoint":
                lines.append(f"{section}.{key}: {value}, {other}")
    return lines


def show_comparison(a: dict[str, Any], b: dict[str, Any], console: Console) -> None:
    """Prints the table, and what was configured differently."""
    table = Table(title="medians over the recorded steps, ms", title_justify="left")
    for heading in ("phase", "A", "B", "B - A", "B / A", "beyond the spread"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for row in compare_records(a, b):
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(
            row["phase"], f"{row['a_ms']:,.2f}", f"{row['b_ms']:,.2f}", f"{row['change_ms']:+,.2f}", ratio,
            "yes" if row["differs"] else "no",
        )  # fmt: skip
    console.print(table)
    for line in differing_config(a, b):
        console.print(line, highlight=False, markup=False)
