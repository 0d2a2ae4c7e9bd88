"""What is lost when everything runs together: waiting for the loader, and for other devices."""

from __future__ import annotations

import statistics
from typing import Any

from deit_fast.distributed import Ranks

from .step import WHOLE
from .timing import OURS, Contender, Timings
from .train import ALONE, END_TO_END

Stall = dict[str, float | None]


def stall(wait_seconds: list[float], timings: Timings, name: str) -> Stall:
    """How long the steps waited for the loader, and their speed as a share of the same step's on synthetic images.

    wait_seconds: of each turn of the workload `name`, those to warm up included. The share is None where there is no
    such step on synthetic images.
    """
    timing = timings[Contender(name, OURS)]
    synthetic = timings.get(Contender(name.replace(END_TO_END, WHOLE), OURS))
    turns = len(timing.seconds)
    return {
        "data_wait_fraction": sum(wait_seconds[-turns:]) / sum(timing.seconds),
        "of_synthetic": None if synthetic is None else synthetic.wall_ms / timing.wall_ms,
    }


def stall_lines(stalls: dict[str, Stall]) -> list[str]:
    """In words."""
    lines = []
    for name, figures in stalls.items():
        line = f"{name}: the host waited for the loader {figures['data_wait_fraction']:.0%} of the time"
        if figures["of_synthetic"] is not None:
            line += f"; {figures['of_synthetic']:.0%} of the same step's speed on synthetic images"
        lines.append(line)
    return lines


def scaling(timings: Timings, ranks: Ranks) -> dict[str, Any] | None:
    """Speed of all devices over that many times one alone, round by round; None for a single device."""
    if ranks.world_size == 1:
        return None
    together, alone = (timings[Contender(name, OURS)].speeds for name in (END_TO_END, ALONE))
    efficiency = [a / (ranks.world_size * b) for a, b in zip(together, alone, strict=True)]
    return {
        "devices": ranks.world_size,
        "efficiency": statistics.median(efficiency),
        "efficiency_min": min(efficiency),
        "efficiency_max": max(efficiency),
    }


def scaling_lines(figures: dict[str, Any] | None) -> list[str]:
    """In words."""
    if figures is None:
        return []
    return [
        f"scaling efficiency {figures['efficiency']:.1%} ({figures['efficiency_min']:.1%} - "
        f"{figures['efficiency_max']:.1%}) = images/s of {figures['devices']} devices / ({figures['devices']} x "
        "images/s of one alone, in the same turns)"
    ]
