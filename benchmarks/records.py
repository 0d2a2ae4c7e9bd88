"""Results as JSON lines: one record for each call of `deit-fast bench`, with everything it depends on.

The fields are described in docs/benchmarks.md; whoever adds one raises SCHEMA only when an old reader would go wrong.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .provenance import describe_machine
from .timing import Contender, Timing

SCHEMA = 1

Record = dict[str, Any]


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


def append_record(path: str, record: Record) -> None:
    """Adds a record to a file of JSON lines, whose folder is made where it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: str) -> list[Record]:
    """All records of a file; ValueError, naming file and line, for what is none."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; `deit-fast bench loader --json {path}` would write it")
    records = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if record["schema"] != SCHEMA or "rows" not in record:
                raise KeyError
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} is no record of `deit-fast bench` (schema {SCHEMA}); take the line away"
            ) from error
        records.append(record)
    return records
