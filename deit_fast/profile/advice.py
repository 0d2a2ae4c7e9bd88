"""What to do about a profile: at most five lines, each from measured figures. A pure function of the record.

Faults come before options: a fault is time that a sound run does not lose, an option is another way to run. Within
each kind the larger gain comes first.
"""

from __future__ import annotations

from typing import Any

from .advice_line import Advice
from .faults import FAULTS
from .options import OPTIONS

MOST = 5


def advise(record: dict[str, Any]) -> list[Advice]:
    """The most useful advice first."""
    found = [advice for rule in (*FAULTS, *OPTIONS) if (advice := rule(record)) is not None]
    found.sort(key=lambda advice: (advice.kind != "fault", -(advice.gain_ms or 0.0)))
    return found[:MOST]
