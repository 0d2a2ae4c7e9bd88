"""One line of advice, and what its rules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .idle import LAUNCH_BOUND

NOTICED = 0.05
"""Share of the step below which nothing is said."""


@dataclass(frozen=True)
class Advice:
    """One line of advice."""

    cause: str
    """data, rank, host wait, teacher precision, ...: what tests and scripts ask for."""
    kind: str
    """fault or option."""
    headline: str
    """The cause in a few words, for people."""
    evidence: str
    mend: str
    gain_ms: float | None
    """Estimated milliseconds of the step; None where this device cannot tell."""

    @property
    def line(self) -> str:
        """Evidence, mend, gain."""
        gain = "gain not measurable here" if self.gain_ms is None else f"up to {self.gain_ms:,.1f} ms of the step"
        return f"{self.evidence}; {self.mend} ({gain})"


def ms_of(record: dict[str, Any], *phases: str) -> float:
    """What the phases take on every rank, mean ms: on the rank where they take least."""
    rows = [row for row in record["phases"] if row["phase"] in phases]
    if not rows:
        return 0.0
    return min(sum(values) for values in zip(*(row["by_rank_ms"] for row in rows), strict=True))


def is_noticed(record: dict[str, Any], ms: float, share: float = NOTICED) -> bool:
    """Whether so many milliseconds are worth a word."""
    return ms > share * record["step"]["mean_ms"]


def percent(record: dict[str, Any], ms: float) -> str:
    """`38% of the step`."""
    return f"{ms / record['step']['mean_ms']:.0%} of the step"


def launch_bound_ms(record: dict[str, Any]) -> float:
    """Milliseconds of a step in which the device is idle since the host has not launched its work yet."""
    idle = record["idle"]
    return float(idle["idle_causes"].get(LAUNCH_BOUND, 0.0) * idle["ms_per_step"])
