"""Reads files of rows for a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .results import Results, gather

SCHEMA = 1


def read_files(paths: Sequence[Path]) -> Results:
    """All records of all files; ValueError, naming file and line, for what is none."""
    records = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no file {path}; `deit-fast bench step --json {path}` writes one")
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                record = json.loads(line)
                known = record["schema"] == SCHEMA and {"bench", "rows", "environment"} <= record.keys()
            except (json.JSONDecodeError, TypeError, KeyError):
                known = False
            if not known:
                raise ValueError(f"{path}, line {number}: no row of `deit-fast bench` with schema {SCHEMA}; remove it")
            records.append(record)
    return gather(records)
