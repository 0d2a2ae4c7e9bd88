"""A record for each call of `deit-fast bench`, with all it depends on; docs/benchmarks.md describes the fields."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch

from deit_fast.bench_records import SCHEMA, Record

from .provenance import describe_machine
from .timing import Contender, Timing


def rows_of(timings: dict[Contender, Timing]) -> list[dict[str, Any]]:
    """A row for each contender, in the order of the turns."""
    return [{**contender._asdict(), **timing.row()} for contender, timing in timings.items()]


def build_record(
    bench: str,
    title: str,
    rows: list[dict[str, Any]],
    device: torch.device,
    *,
    config: dict[str, Any],
    verdict: dict[str, Any] | None = None,
    **more: Any,
) -> Record:
    """What was measured, when, by which configuration, and on what."""
    return {
        "schema": SCHEMA,
        "bench": bench,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "title": title,
        "rows": rows,
        "verdict": verdict,
        "config": config,
        "environment": describe_machine(device),
        **more,
    }
