"""The file of `deit-fast bench`'s results: a JSON line for each call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = 1
"""Raised only when an old reader would go wrong."""

Record = dict[str, Any]


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
