"""What a check found, and how it is mended."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "note", "warning", "failure"]
"""ok: as it should be; note: worth knowing; warning: slower or worse than need be; failure: the run will fail."""


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    level: Level
    text: str
    mend: str = ""
    """What to do about it; there for every warning and failure."""


def worst(findings: list[Finding]) -> Level:
    """The most serious level among them."""
    order: tuple[Level, ...] = ("ok", "note", "warning", "failure")
    return max((finding.level for finding in findings), key=order.index, default="ok")
